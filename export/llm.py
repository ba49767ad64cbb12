"""`penstock export llm`: a checkpoint becomes a bundle.

    1. convert    the source, tensor by tensor, into a plain bundle
    2. calibrate  run it densely on calibration text; keep FFN inputs and hidden activations
    3. study      per layer: neuron order, predictor, statistics
    4. write      the bundle again, reordered, with predictors and statistics
    5. evaluate   perplexity before and after, on text that nothing was fitted to

Without calibration the plain bundle of step 1 is the result.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import StorageError, UsageError
from penstock.export.bundle_writer import (
    BundlePlan,
    bundle_stride,
    planned_bytes,
    write_bundle,
)
from penstock.export.calibration import capture, default_tokens
from penstock.export.layer_study import LayerStudy, study_layer
from penstock.export.model_spec import MetadataValue, ModelSpec
from penstock.export.perplexity import (
    HeldOutText,
    bundle_perplexity,
    held_out_text,
    transformers_nats,
)
from penstock.export.predictor import import_torch
from penstock.export.report import ExportReport, PerplexityReport, Progress, ProgressCallback
from penstock.export.sources import Source, open_source
from penstock.export.statistics import WINDOWS
from penstock.export.texts import read_text
from penstock.loaders.bundle import Bundle, open_bundle
from penstock.quant.blocks import block_format

EPOCHS = 8
TRANSFORMERS_BYTES = 2 << 30  # in float32; larger checkpoints are judged through an F16 bundle


def export_llm(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str = "F16",
    block: int = 512,
    name: str | None = None,
    activation: str | None = None,
    calibrate: bool = True,
    calibration: str | os.PathLike[str] | None = None,
    calibration_tokens: int | None = None,
    evaluate: bool = True,
    evaluation: str | os.PathLike[str] | None = None,
    evaluation_tokens: int | None = None,
    recall_target: float = 0.99,
    tokenizer: bool = True,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ExportReport:
    """Export a language model to a bundle file.

    Args:
        source: a Hugging Face folder, or a GGUF of a supported architecture.
        out: the file to write.
        dtype: F16, Q8_0 or Q4_0, of bundles and resident matrices.
        block: bundles are padded to a multiple of it: 512, or 4096 for 4Kn drives.
        name: `general.name` of the bundle; None: the folder's name, or what a GGUF source says.
        activation: for a llama GGUF, which does not say: relu, relu2, drelu or fatrelu:THRESHOLD.
        calibrate: train predictors, choose the neuron order and measure statistics. False makes a
            plain bundle, which runs only in `exact` mode or dense.
        calibration: a text file; None takes the sample of fairy tales in the package.
        calibration_tokens: at most so many of it; None chooses by the model's size.
        evaluate: measure perplexity before and after.
        evaluation: a text file that calibration does not use; None takes the package's.
        evaluation_tokens: at most so many of it.
        recall_target: share of the active magnitude that predicted neurons must carry.
        tokenizer: False exports a source that has no tokenizer; it then cannot calibrate.
        threads: for calibration; None takes every core.
        overwrite: whether `out` may exist.
        progress: called often; an exception from it stops the export, and what is not whole is
            removed.

    Raises:
        UsageError: an argument is out of its range, or `out` exists.
        FormatError: the source is damaged or incomplete.
        UnsupportedModelError: an architecture or activation that cannot be streamed by neuron.
        BackendMissingError: the extra `penstock[export]` is needed and not installed.
        StorageError: reading or writing failed.
    """
    target = Path(out)
    form = block_format(dtype)
    _check(target, name, recall_target, overwrite)
    model = open_source(source, activation)
    if name is not None:
        model.spec = replace(model.spec, name=name)
    plan = BundlePlan(form, block)
    stride = bundle_stride(model.spec, form, block)
    clock = _Clock(progress)
    study: tuple[LayerStudy, ...] = ()
    tokens = 0
    if not calibrate:
        _convert(model, target, plan, tokenizer, clock)
    else:
        import_torch()  # before the work, not after it
        text = read_text(calibration, "calibration.txt")
        with _scratch_file(target, "plain") as plain, _torch_threads(threads):
            _convert(model, plain, plan, True, clock)
            study, tokens = _study(
                model,
                open_bundle(plain),
                text,
                calibration_tokens,
                stride,
                recall_target,
                threads,
                clock,
            )
        _write(model, target, _studied_plan(plan, study, tokens, recall_target), clock)
    perplexity: tuple[PerplexityReport, ...] = ()
    if evaluate and tokenizer:
        text = read_text(evaluation, "evaluation.txt")
        with _torch_threads(threads):
            perplexity = _evaluate(model, target, text, evaluation_tokens, threads, clock)
    return _report(model, target, plan, stride, recall_target, study, tokens, perplexity, clock)


class _Clock:
    """Times the stages and tells the caller where the export is."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self.callback = callback
        self.seconds: dict[str, float] = {}
        self._stage, self._unit, self._done, self._total = "", "", 0, 0

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[None]:
        self._stage, self._unit, self._done, self._total = name, unit, 0, total
        begin = time.monotonic()
        self.tick(0)
        yield
        self.catch_up(total)
        self.seconds[name] = round(time.monotonic() - begin, 3)

    def catch_up(self, done: int) -> None:
        """For work that turned out shorter than announced."""
        if done > self._done:
            self.tick(done - self._done)

    def tick(self, count: int) -> None:
        self._done += count
        if self.callback is not None:
            self.callback(Progress(self._stage, self._done, self._total, self._unit))


def _convert(source: Source, out: Path, plan: BundlePlan, tokenizer: bool, clock: _Clock) -> None:
    with clock.stage("convert", planned_bytes(source, plan), "bytes"):
        write_bundle(source, out, plan, tokenizer, clock.tick)


def _write(source: Source, out: Path, plan: BundlePlan, clock: _Clock) -> None:
    with clock.stage("write", planned_bytes(source, plan), "bytes"):
        write_bundle(source, out, plan, True, clock.tick)


def _study(
    source: Source,
    plain: Bundle,
    text: str,
    tokens: int | None,
    stride: int,
    recall_target: float,
    threads: int | None,
    clock: _Clock,
) -> tuple[tuple[LayerStudy, ...], int]:
    """Every layer's study, and the calibration tokens they come from."""
    spec = source.spec
    with contextlib.ExitStack() as stack:
        with clock.stage("calibrate", tokens or default_tokens(spec.neurons), "tokens"):
            folder = Path(plain.path).parent
            captured = stack.enter_context(
                capture(plain, text, tokens, threads, clock.tick, folder)
            )
        with clock.stage("train predictors", spec.layers * EPOCHS, "epochs"):
            studies = []
            for n in range(spec.layers):
                studies.append(
                    study_layer(source, n, captured, stride, recall_target, EPOCHS, clock.tick)
                )
                clock.catch_up((n + 1) * EPOCHS)
        return tuple(studies), captured.tokens


def _studied_plan(
    plan: BundlePlan, studies: tuple[LayerStudy, ...], tokens: int, recall_target: float
) -> BundlePlan:
    """The plain plan with orders, predictors and statistics."""
    reports = [s.report for s in studies]

    def each(values: Iterable[float]) -> NDArray[np.float32]:
        return np.array(list(values), np.float32)

    metadata: dict[str, MetadataValue] = {
        "penstock.predictor.rank": np.array([r.rank for r in reports], np.uint32),
        "penstock.predictor.recall_target": float(recall_target),
        "penstock.predictor.recall": each(r.recall for r in reports),
        "penstock.predictor.false_negative_rate": each(r.false_negative_rate for r in reports),
        "penstock.predictor.false_positive_rate": each(r.false_positive_rate for r in reports),
        "penstock.stats.tokens": tokens,
        "penstock.stats.active": each(r.active for r in reports),
        "penstock.stats.predicted": each(r.predicted for r in reports),
        "penstock.stats.window": WINDOWS,
        "penstock.stats.misses": np.concatenate([s.misses for s in studies]),
        "penstock.stats.exact_misses": np.concatenate([s.exact_misses for s in studies]),
    }
    return replace(
        plan,
        orders=tuple(s.order for s in studies),
        predictors=tuple(s.predictor for s in studies),
        metadata=metadata,
    )


def _evaluate(
    source: Source, out: Path, text: str, tokens: int | None, threads: int | None, clock: _Clock
) -> tuple[PerplexityReport, ...]:
    """Before: the checkpoint in float32 if it is small, else a dense F16 bundle of it. After:
    `out`."""
    bundle = open_bundle(out)
    tokens = tokens or default_evaluation_tokens(source.spec)
    held_out = held_out_text(bundle, text, tokens)
    modes = ["dense", *(["predictor"] if any(bundle.predictors) else [])]
    with clock.stage("evaluate", (len(modes) + 1) * held_out.tokens, "tokens"):
        reports = [_before(source, out, bundle, held_out, threads, clock)]
        for mode in modes:
            nats = bundle_perplexity(bundle, held_out, mode, threads, clock.tick)
            reports.append(held_out.report(nats, f"bundle {bundle.dtype}", mode))
    return tuple(reports)


def _before(
    source: Source, out: Path, bundle: Bundle, text: HeldOutText, threads: int | None, clock: _Clock
) -> PerplexityReport:
    if source.path.is_dir() and source.parameters * 4 <= TRANSFORMERS_BYTES:
        nats = transformers_nats(source.path, text, clock.tick)
        if nats is not None:
            return text.report(nats, "source, transformers float32", "dense")
    if bundle.dtype == "F16":
        nats = bundle_perplexity(bundle, text, "dense", threads, clock.tick)
        return text.report(nats, f"source {source.weight_format} as an F16 bundle", "dense")
    with _scratch_file(out, "f16") as plain:
        write_bundle(source, plain, BundlePlan(block_format("F16")))
        nats = bundle_perplexity(open_bundle(plain), text, "dense", threads, clock.tick)
    return text.report(nats, f"source {source.weight_format} as an F16 bundle", "dense")


def default_evaluation_tokens(spec: ModelSpec) -> int:
    """Tokens of held-out text: fewer for large models, which take a second or more for each."""
    weights = spec.layers * spec.width * (spec.neurons * 2 + 4 * spec.width)
    return int(np.clip(60e9 / weights, 256, 4096))


@contextmanager
def _scratch_file(out: Path, what: str) -> Iterator[Path]:
    """A name beside `out` for a file that does not outlive the block."""
    path = out.with_name(f".{out.name}.{what}-{os.getpid()}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """Hold torch to so many threads, where it is installed."""
    if threads is None or "torch" not in sys.modules:
        yield
        return
    torch = import_torch()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(target: Path, name: str | None, recall_target: float, overwrite: bool) -> None:
    if name is not None and not (name and name.isprintable()):
        raise UsageError(f"name is {name!r}; expected one line of text")
    if not 0.5 <= recall_target <= 1.0:
        raise UsageError(f"recall target is {recall_target}; expected 0.5 to 1.0")
    if target.is_dir() or (target.exists() and not overwrite):
        raise UsageError(
            f"{target}: exists; choose another name, or pass overwrite=True (--overwrite)"
        )
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent}: there is no such folder; make it first")


def _report(
    source: Source,
    out: Path,
    plan: BundlePlan,
    stride: int,
    recall_target: float,
    studies: tuple[LayerStudy, ...],
    tokens: int,
    perplexity: tuple[PerplexityReport, ...],
    clock: _Clock,
) -> ExportReport:
    bundle = open_bundle(out)
    return ExportReport(
        source=str(source.path),
        out=str(out),
        name=source.spec.name,
        arch=source.spec.arch,
        activation=source.spec.activation,
        dtype=plan.form.name,
        block=plan.block,
        stride=stride,
        source_bytes=source.weight_bytes,
        source_format=source.weight_format,
        bundle_bytes=bundle.file.size,
        ffn_bytes=bundle.ffn_bytes,
        predictor_bytes=sum(p.nbytes for p in bundle.predictors if p is not None),
        recall_target=recall_target,
        calibration_tokens=tokens,
        layers=tuple(s.report for s in studies),
        perplexity=perplexity,
        seconds=clock.seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    try:
        # Not ru_maxrss where this is to be had: that starts from the parent's size at the fork.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
