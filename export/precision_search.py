"""Sensitivity of layers and the choice of a mix, for any format that has a `PrecisionBuilder`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.errors import UsageError
from penstock.export.artifact_report import LayerSensitivity
from penstock.export.dataset import Dataset
from penstock.export.mixed_precision import (
    Evaluate,
    Mix,
    PrecisionBuilder,
    choose_precisions,
    rank_layers,
)
from penstock.export.report import ProgressCallback

SAMPLES = 16
"""That each layer is measured on, where nothing else is said."""


@dataclass(frozen=True)
class PrecisionSearch:
    """What is wanted beyond one precision for all layers.

    Attributes:
        sensitivity: report what each layer costs alone.
        target_bytes: the mix of least noise in a file of at most so many bytes.
        max_drop: the smallest mix that loses at most so much accuracy, 0.01 for a point.
        samples: to measure layers and mixes on; None: 16, and with `max_drop` all.

    Raises:
        UsageError: `max_drop` is no share below 1: 5 is not five points.
    """

    sensitivity: bool = False
    target_bytes: int | None = None
    max_drop: float | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise UsageError(
                f"the greatest drop (--max-drop) is {self.max_drop:g}, expected 0 or more and less "
                "than 1; 0.01 is a point"
            )

    @property
    def mixes(self) -> bool:
        return self.target_bytes is not None or self.max_drop is not None

    @property
    def wanted(self) -> bool:
        return self.sensitivity or self.mixes

    @property
    def limit(self) -> int | None:
        """Samples to measure on."""
        return SAMPLES if self.samples is None and self.max_drop is None else self.samples


@dataclass(frozen=True)
class Found:
    """The result of a search; `mix` is None where only the ranking was asked for."""

    sensitivity: tuple[LayerSensitivity, ...]
    mix: Mix | None
    notes: tuple[str, ...]


def search_precisions(
    builder: PrecisionBuilder,
    search: PrecisionSearch,
    evaluate: Evaluate,
    *,
    precisions: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
) -> Found:
    """Rank the layers, and choose a mix where one is wanted.

    Args:
        precisions: that a layer may be given, beside float; None: all that it offers.

    Raises:
        UsageError: the size or the drop cannot be met; the least that can be is named.
    """
    ranked = rank_layers(builder, evaluate, precisions, progress=progress)
    if not search.mixes:
        return Found(ranked, None, ())
    mix = choose_precisions(
        builder,
        ranked,
        target_bytes=search.target_bytes,
        max_drop=search.max_drop,
        evaluate=evaluate,
        progress=progress,
    )
    counts = {p: list(mix.precisions.values()).count(p) for p in set(mix.precisions.values())}
    chosen = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    note = f"mix of {mix.nbytes} bytes, chosen over {mix.builds} files: {chosen}"
    return Found(ranked, mix, (note,))


def search_data(
    search: PrecisionSearch,
    calibration: Dataset | None,
    evaluation: Dataset | None,
    noise: Callable[[], Dataset],
) -> tuple[Dataset, tuple[str, ...]]:
    """What layers are measured on: not what the result is reported on, where that can be.

    Raises:
        UsageError: a greatest drop, and no data with labels.
    """
    if search.max_drop is None:
        if calibration is not None:
            return calibration, ()
        if evaluation is None:
            return noise(), ("layers were measured on random inputs: give calibration data",)
        return evaluation, ("layers were measured on the evaluation data",)
    if calibration is not None and calibration.labels is not None:
        return calibration, ()
    if evaluation is not None and evaluation.labels is not None:
        note = (
            "the mix was chosen on the data that it is reported on: expect a little less elsewhere"
        )
        return evaluation, (note,)
    raise UsageError("a greatest drop (--max-drop) needs data with labels: --eval and --labels")
