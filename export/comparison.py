"""A model beside the one it was made from, on the same data: outputs, task, time.

    before, after = open_model("float.onnx", threads=1), open_model("int8.onnx", threads=1)
    metrics = compare_models(before, after, dataset)
    slow, fast = measure_latency([before, after], next(dataset.samples()))

Inputs and outputs are matched by name, or by position where a quantizer renamed them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.export.artifact_report import Latency, Metric
from penstock.export.dataset import Dataset, Sample
from penstock.export.mixed_precision import Evaluation
from penstock.loaders.tensor_graph import TensorSpec

if TYPE_CHECKING:
    from penstock.runtime.backends.tensor_model import Arrays, TensorModel

EQUAL_DB = 200.0  # SQNR of equal outputs; no two floats differ by less
KEPT_BYTES = 256 << 20  # of samples that `evaluator` keeps in memory


def compare_models(
    before: TensorModel,
    after: TensorModel,
    dataset: Dataset,
    *,
    limit: int | None = None,
    on_sample: Callable[[int], None] | None = None,
) -> tuple[Metric, ...]:
    """Metrics of `after`, with those of `before` where they have a meaning of their own.

    `sqnr_db` and `cosine` are over all samples, of the worst output; of more than one output each
    has its own too: `sqnr_db:boxes`. Where the only output is a row of scores, `agreement` is the
    share of samples on which both name the same class, and with labels `accuracy` that of right
    ones.

    Raises:
        UsageError: the models do not have as many outputs, or a label is no class of the model.
        PenstockError: a model fails on a sample, or makes NaN or infinity of it.
    """
    labels = dataset.labels
    scores = Scores(before.outputs, after.path)
    for index, sample in enumerate(dataset.samples(limit)):
        wanted = before.run(sample.arrays, floats=True, finite=True)
        scores.add(sample, wanted, run_matched(before, after, sample))
        if on_sample is not None:
            on_sample(index + 1)
    return scores.metrics(labels is not None)


def evaluator(
    before: TensorModel, dataset: Dataset, *, limit: int | None = None, threads: int | None = None
) -> Callable[[Path], Evaluation]:
    """Measures files against `before`, for `mixed_precision`: SQNR, and accuracy with labels.

    The float outputs are computed once and kept; so are the samples, up to 256 MiB.

    Raises:
        UsageError, PenstockError: as `compare_models`, also from the function that is returned.
    """
    from penstock.runtime.backends.open_model import open_model

    wanted = [before.run(s.arrays, floats=True, finite=True) for s in dataset.samples(limit)]
    samples = _kept(dataset, limit, len(wanted))

    def evaluate(path: Path) -> Evaluation:
        scores = Scores(before.outputs, path)
        with open_model(path, threads=before.threads if threads is None else threads) as after:
            source = dataset.samples(limit) if samples is None else samples
            for sample, expected in zip(source, wanted, strict=True):
                scores.add(sample, expected, run_matched(before, after, sample))
        return scores.evaluation(dataset.labels is not None)

    return evaluate


def measure_latency(
    models: Sequence[TensorModel], sample: Sample, runs: int = 50, warmup: int = 5
) -> list[Latency]:
    """Time of one run of each model, taken in turns so that all see the same machine.

    Inputs of quantized models are quantized beforehand: what is timed is the model.
    """
    fed = [_native_inputs(models[0], model, sample) for model in models]
    spent: list[list[float]] = [[] for _ in models]
    for turn in range(warmup + runs):
        for place, model in enumerate(models):
            start = time.perf_counter()
            model.run(fed[place])
            if turn >= warmup:
                spent[place].append((time.perf_counter() - start) * 1000)
    return [
        Latency(
            float(np.percentile(times, 50)), float(np.percentile(times, 95)), runs, model.threads
        )
        for times, model in zip(spent, models, strict=True)
    ]


def run_matched(before: TensorModel, after: TensorModel, sample: Sample) -> Arrays:
    """What `after` makes of a sample that is named as `before`'s inputs; outputs named likewise.

    Raises:
        UsageError: it has other inputs or outputs.
        PenstockError: it fails, or makes NaN or infinity.
    """
    made = after.run(_renamed(before.inputs, after, sample.arrays), floats=True, finite=True)
    names = [spec.name for spec in before.outputs]
    if set(names) == set(made):
        return {name: made[name] for name in names}
    if len(names) != len(made):
        raise UsageError(
            f"{after.path}: outputs {', '.join(made)}; the model it was made from has "
            f"{', '.join(names)}"
        )
    return dict(zip(names, made.values(), strict=True))


@dataclass
class OutputScore:
    """Sums over samples of one output, in float64."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0

    def add(self, wanted: NDArray[Any], made: NDArray[Any]) -> None:
        x, y = wanted.astype(np.float64).ravel(), made.astype(np.float64).ravel()
        self.signal += float(x @ x)
        self.other += float(y @ y)
        self.product += float(x @ y)
        self.noise += float(((x - y) ** 2).sum())

    @property
    def sqnr_db(self) -> float:
        return sqnr_db(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        norms = float(np.sqrt(self.signal * self.other))
        return self.product / norms if norms else float(self.signal == self.other)


@dataclass
class Scores:
    """What two models make of the same samples.

    Attributes:
        outputs: of the first; path: of the second, for errors.
    """

    outputs: Sequence[TensorSpec]
    path: Path
    samples: int = 0
    right_before: int = 0
    right_after: int = 0
    same: int = 0
    classes: int | None = None
    by_output: dict[str, OutputScore] = field(default_factory=dict)

    def add(self, sample: Sample, wanted: Arrays, made: Arrays) -> None:
        """Raises UsageError: shapes differ, or the sample's label is no class."""
        self.samples += 1
        for spec in self.outputs:
            x, y = wanted[spec.name], made[spec.name]
            if x.shape != y.shape:
                raise UsageError(
                    f"{self.path}: output '{spec.name}' is {y.shape} for {sample.name}; the model "
                    f"it was made from gives {x.shape}"
                )
            if x.dtype.kind in "fiub":
                self.by_output.setdefault(spec.name, OutputScore()).add(x, y)
        self.classes = class_count(wanted)
        if self.classes is None:
            if sample.label is not None:
                shapes = ", ".join(f"'{name}' {a.shape}" for name, a in wanted.items())
                raise UsageError(
                    f"{sample.name} has a label, and the model gives no row of scores to hold it "
                    f"against: {shapes}"
                )
            return
        (x,), (y,) = wanted.values(), made.values()
        before, after = int(np.argmax(x)), int(np.argmax(y))
        self.same += before == after
        if sample.label is not None:
            if sample.label >= self.classes:
                raise UsageError(
                    f"{sample.name} has label {sample.label}, and the model has classes 0 to "
                    f"{self.classes - 1}; is this the label file of this model?"
                )
            self.right_before += before == sample.label
            self.right_after += after == sample.label

    def metrics(self, labelled: bool) -> tuple[Metric, ...]:
        """As in `compare_models`."""
        count, scores = self.samples, self.by_output
        metrics = []
        if scores:
            metrics += [
                Metric("sqnr_db", None, min(s.sqnr_db for s in scores.values()), count),
                Metric("cosine", None, min(s.cosine for s in scores.values()), count),
            ]
        if len(scores) > 1:
            metrics += [Metric(f"sqnr_db:{n}", None, s.sqnr_db, count) for n, s in scores.items()]
            metrics += [Metric(f"cosine:{n}", None, s.cosine, count) for n, s in scores.items()]
        if self.classes is not None:
            metrics.append(Metric("agreement", None, self.same / count, count))
            if labelled:
                before, after = self.right_before / count, self.right_after / count
                metrics.append(Metric("accuracy", before, after, count))
        return tuple(metrics)

    def evaluation(self, labelled: bool) -> Evaluation:
        """For `mixed_precision`."""
        found = {metric.name: metric.after for metric in self.metrics(labelled)}
        return Evaluation(found.get("sqnr_db", EQUAL_DB), found.get("accuracy"))


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise power), held within +-200 dB."""
    if noise == 0:
        return EQUAL_DB
    if signal == 0:
        return -EQUAL_DB
    return float(np.clip(10 * np.log10(signal / noise), -EQUAL_DB, EQUAL_DB))


def class_count(outputs: Mapping[str, NDArray[Any]]) -> int | None:
    """Of a classifier: its only output is one row of two or more scores."""
    if len(outputs) != 1:
        return None
    (scores,) = outputs.values()
    is_row = scores.ndim >= 1 and scores.size == scores.shape[-1] and scores.size > 1
    return scores.size if is_row and scores.dtype.kind in "fiu" else None


def _renamed(
    inputs: Sequence[TensorSpec], after: TensorModel, arrays: Mapping[str, NDArray[Any]]
) -> Arrays:
    names = [spec.name for spec in after.inputs]
    if set(names) == set(arrays):
        return dict(arrays)
    if len(names) != len(inputs):
        raise UsageError(
            f"{after.path}: inputs {', '.join(names)}; the model it was made from has "
            f"{', '.join(spec.name for spec in inputs)}"
        )
    return {name: arrays[spec.name] for name, spec in zip(names, inputs, strict=True)}


def _native_inputs(before: TensorModel, model: TensorModel, sample: Sample) -> Arrays:
    fed = _renamed(before.inputs, model, sample.arrays)
    for spec in model.inputs:
        array = fed[spec.name]
        if spec.quantization is not None and array.dtype.kind == "f" and spec.dtype != array.dtype:
            fed[spec.name] = spec.quantization.quantize(array, spec.dtype)
    return fed


def _kept(dataset: Dataset, limit: int | None, count: int) -> list[Sample] | None:
    """The samples, where they fit in memory."""
    kept: list[Sample] = []
    for sample in dataset.samples(limit):
        kept.append(sample)
        if _nbytes(sample.arrays.values()) * count > KEPT_BYTES:
            return None
    return kept


def _nbytes(arrays: Iterable[NDArray[Any]]) -> int:
    return sum(array.nbytes for array in arrays)
