"""Which layer gets how many bits: measured sensitivity, then the best mix under a size or a drop.

1. `rank_layers` quantizes each layer alone, at each precision, and measures the model's outputs.
2. `best_mix` takes the noise power that each choice added (10^(-SQNR/10)) as its
   cost and finds the least sum under a number of bytes. That noises add up holds where they are
   small and independent; it is an approximation.
3. `choose_precisions` therefore builds the mix, measures the real size and drop, and repairs it:
   less room while the file is too large, other mixes while the drop is too great.

A `PrecisionBuilder` is what a file format has to offer for this.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from penstock.errors import UsageError
from penstock.export.artifact_report import LayerSensitivity
from penstock.export.bit_allocation import Option, best_mix
from penstock.export.report import Progress, ProgressCallback

FLOAT = "float"
"""The precision of a layer that is left as the source has it; every layer offers it."""

SIZE_REPAIRS = 8
BISECTIONS = 8


@dataclass(frozen=True)
class WeightedLayer:
    """A layer that can be quantized.

    Attributes:
        name: of its node in the source.
        operator: `Conv`, `FULLY_CONNECTED`, ...
        parameters: count.
        bytes: that it takes in the artifact, by precision; `FLOAT` is one of them.
    """

    name: str
    operator: str
    parameters: int
    bytes: Mapping[str, int]


class PrecisionBuilder(Protocol):
    """Writes a model with a precision for each layer."""

    @property
    def layers(self) -> tuple[WeightedLayer, ...]:
        """What can be quantized."""
        ...

    @property
    def fixed_bytes(self) -> int:
        """Of the artifact, whatever the precisions: the graph, biases, other layers."""
        ...

    @property
    def suffix(self) -> str:
        """Of the files it writes: '.onnx', '.tflite'."""
        ...

    def build(self, precisions: Mapping[str, str], out: Path) -> None:
        """Write the model; layers that are not named stay `FLOAT`."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """How good a built model is.

    Attributes:
        sqnr_db: of its outputs against the float model's.
        metric: of its task, more is better; None where there is none.
    """

    sqnr_db: float
    metric: float | None = None


Evaluate = Callable[[Path], Evaluation]


@dataclass(frozen=True)
class Mix:
    """A choice of precisions, built and measured.

    Attributes:
        precisions: of each layer.
        nbytes: of the file.
        evaluation: None where nothing evaluates.
        drop: metric of the float model - metric of the mix; None without a metric.
        builds: how many files were made to find it.
    """

    precisions: dict[str, str]
    nbytes: int
    evaluation: Evaluation | None
    drop: float | None
    builds: int


def rank_layers(
    builder: PrecisionBuilder,
    evaluate: Evaluate,
    precisions: Sequence[str] | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> tuple[LayerSensitivity, ...]:
    """Quantize each layer alone and measure; the most sensitive first.

    Args:
        evaluate: a file that the builder wrote. Use the same data each time.
        precisions: those to try; None: all that a layer offers.

    Raises:
        UsageError: no layer offers one of them.
    """
    trials = [
        (layer, precision)
        for layer in builder.layers
        for precision in layer.bytes
        if precision != FLOAT and (precisions is None or precision in precisions)
    ]
    if not trials:
        wanted = "anything but float" if precisions is None else ", ".join(precisions)
        raise UsageError(f"no layer of the model can be {wanted}; there is nothing to rank")
    ranked = []
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        trial = _Trials(builder, evaluate, Path(folder))
        whole = trial({})[1]
        for done, (layer, precision) in enumerate(trials):
            if progress is not None:
                progress(Progress("sensitivity of layers", done, len(trials), "layers"))
            seen = trial({layer.name: precision})[1]
            assert seen is not None
            ranked.append(
                LayerSensitivity(
                    layer.name,
                    layer.operator,
                    precision,
                    layer.parameters,
                    layer.bytes[FLOAT] - layer.bytes[precision],
                    seen.sqnr_db,
                    _drop(whole, seen),
                )
            )
    return tuple(sorted(ranked, key=lambda one: one.sqnr_db))


def choose_precisions(
    builder: PrecisionBuilder,
    sensitivities: Sequence[LayerSensitivity],
    *,
    target_bytes: int | None = None,
    max_drop: float | None = None,
    evaluate: Evaluate | None = None,
    tries: int = 12,
    progress: ProgressCallback | None = None,
) -> Mix:
    """The mix with the least noise within `target_bytes`, or the smallest within `max_drop`.

    With both, the mix keeps to the size, and others of that size are tried until the drop is met.

    Args:
        sensitivities: from `rank_layers`, over the precisions that may be used.
        max_drop: in the unit of `Evaluation.metric`.
        evaluate: needed for `max_drop`. What it sees should not be the data that the result is
            reported on.
        tries: other mixes to measure while the drop is too great.

    Raises:
        UsageError: neither is given, or it cannot be met: the least that can be is named.
    """
    if target_bytes is None and max_drop is None:
        raise UsageError("give a target size or a greatest drop to choose precisions by")
    if max_drop is not None and evaluate is None:
        raise UsageError("a greatest drop needs data with labels to measure it on")
    options = layer_options(builder, sensitivities)
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        trials = _Trials(builder, evaluate, Path(folder), progress)
        search = _Search(builder.fixed_bytes, options, trials)
        if target_bytes is None:
            assert max_drop is not None
            return search.smallest(max_drop)
        mix = search.within(target_bytes)
        if max_drop is None:
            return mix
        return search.repaired(mix, target_bytes, max_drop, tries)


def layer_options(
    builder: PrecisionBuilder, sensitivities: Sequence[LayerSensitivity]
) -> dict[str, list[Option]]:
    """What each layer can be, with its bytes and noise; layers that were not ranked stay float."""
    layers = {layer.name: layer for layer in builder.layers}
    options = {name: [Option(FLOAT, layer.bytes[FLOAT], 0.0)] for name, layer in layers.items()}
    for one in sensitivities:
        noise = 10 ** (-one.sqnr_db / 10)
        options[one.layer].append(
            Option(one.precision, layers[one.layer].bytes[one.precision], noise)
        )
    return options


class _Trials:
    """Builds files and measures them, each mix once."""

    def __init__(
        self,
        builder: PrecisionBuilder,
        evaluate: Evaluate | None,
        folder: Path,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.builder = builder
        self.evaluate = evaluate
        self.folder = folder
        self.progress = progress
        self.builds = 0
        self._seen: dict[tuple[tuple[str, str], ...], tuple[int, Evaluation | None]] = {}

    def __call__(self, precisions: Mapping[str, str]) -> tuple[int, Evaluation | None]:
        chosen = {name: value for name, value in precisions.items() if value != FLOAT}
        key = tuple(sorted(chosen.items()))
        if key not in self._seen:
            self.builds += 1
            if self.progress is not None:
                self.progress(Progress("mixes measured", self.builds, 0, "mixes"))
            path = self.folder / f"mix{self.builder.suffix}"
            self.builder.build(chosen, path)
            self._seen[key] = (
                path.stat().st_size,
                None if self.evaluate is None else self.evaluate(path),
            )
            path.unlink()
        return self._seen[key]

    def mix(self, options: Mapping[str, Option]) -> Mix:
        precisions = {name: option.precision for name, option in options.items()}
        nbytes, evaluation = self(precisions)
        drop = None if evaluation is None else _drop(self({})[1], evaluation)
        return Mix(precisions, nbytes, evaluation, drop, self.builds)


class _Search:
    """Mixes that are measured to hold what was asked for."""

    def __init__(
        self, fixed_bytes: int, options: Mapping[str, Sequence[Option]], trials: _Trials
    ) -> None:
        self.fixed_bytes = fixed_bytes
        self.options = options
        self.trials = trials

    def within(self, target: int, options: Mapping[str, Sequence[Option]] | None = None) -> Mix:
        """The best mix whose file is no larger than `target`."""
        options = self.options if options is None else options
        least = sum(min(option.nbytes for option in choices) for choices in options.values())
        room = target - self.fixed_bytes
        for _ in range(SIZE_REPAIRS):
            if room < least:
                break
            mix = self.trials.mix(best_mix(options, room))
            if mix.nbytes <= target:
                return mix
            used = sum(_option(options, n, p).nbytes for n, p in mix.precisions.items())
            room = min(room, used) - (mix.nbytes - target)
        smallest = self.trials.mix(best_mix(options, least))
        if smallest.nbytes <= target:
            return smallest
        raise UsageError(
            f"{target} bytes cannot be met: the smallest mix makes a file of {smallest.nbytes}"
        )

    def smallest(self, max_drop: float) -> Mix:
        """The smallest mix found by bisection of the size that keeps the drop."""
        low = sum(min(option.nbytes for option in choices) for choices in self.options.values())
        high = sum(max(option.nbytes for option in choices) for choices in self.options.values())
        found: Mix | None = None
        closest = self.trials.mix(best_mix(self.options, low))
        if _holds(closest, max_drop):
            return closest
        for _ in range(BISECTIONS):
            middle = (low + high) // 2
            mix = self.trials.mix(best_mix(self.options, middle))
            if _holds(mix, max_drop):
                high = middle
                if set(mix.precisions.values()) != {FLOAT}:
                    found = mix
            else:
                low = middle
                closest = min(closest, mix, key=_known_drop)
        if found is None:
            raise UsageError(
                f"no mix keeps the drop within {max_drop:g}: the least that was measured is "
                f"{_known_drop(closest):g}, at {closest.nbytes} bytes"
            )
        return found

    def repaired(self, mix: Mix, target: int, max_drop: float, tries: int) -> Mix:
        """Other mixes of the size until one keeps the drop.

        The layer that adds most noise is held at a better precision and the others make room;
        what lowers the drop is kept.
        """
        options = dict(self.options)
        best, refused = mix, set[tuple[str, str]]()
        for _ in range(tries):
            if _holds(best, max_drop):
                return best
            swap = self._swap(best, options, refused)
            if swap is None:
                break
            name, better = swap
            refused.add((name, best.precisions[name]))
            try:
                tried = self.within(target, options | {name: better})
            except UsageError:
                continue
            if _known_drop(tried) < _known_drop(best):
                best, options[name] = tried, better
        if _holds(best, max_drop):
            return best
        raise UsageError(
            f"no mix of {target} bytes keeps the drop within {max_drop:g}: the least that was "
            f"measured is {_known_drop(best):g}; give more bytes or a greater drop"
        )

    def _swap(
        self,
        mix: Mix,
        options: Mapping[str, Sequence[Option]],
        refused: set[tuple[str, str]],
    ) -> tuple[str, list[Option]] | None:
        """The noisiest layer that could be better, and its better options."""
        swaps = []
        for name, precision in mix.precisions.items():
            now = _option(options, name, precision)
            better = [option for option in options[name] if option.noise < now.noise]
            if better and (name, precision) not in refused:
                swaps.append((now.noise, name, better))
        if not swaps:
            return None
        _, name, better = max(swaps, key=lambda swap: swap[0])
        return name, better


def _option(options: Mapping[str, Sequence[Option]], name: str, precision: str) -> Option:
    return next(option for option in options[name] if option.precision == precision)


def _drop(whole: Evaluation | None, seen: Evaluation) -> float | None:
    if whole is None or whole.metric is None or seen.metric is None:
        return None
    return whole.metric - seen.metric


def _known_drop(mix: Mix) -> float:
    if mix.drop is None:
        raise UsageError("a greatest drop needs a metric: give data with labels")
    return mix.drop


def _holds(mix: Mix, max_drop: float) -> bool:
    return _known_drop(mix) <= max_drop + 1e-12  # the difference of two shares is not exact
