"""Checks of a written artifact: an artifact that fails one is not kept.

What goes wrong silently in today's tools: a file that its own runtime refuses, a quantizer that
changed nothing and says it is done, a "quantized" file that is larger, an accuracy that fell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from penstock.errors import PenstockError, UsageError
from penstock.export.artifact_report import ArtifactReport, Gate


@dataclass(frozen=True)
class Floors:
    """What the caller wants at the least.

    Attributes:
        metrics: the worst value allowed of a metric, by name: `{"accuracy": 0.85}`. For a metric
            of which less is better it is the greatest.
        min_ratio: times smaller than the source, above 0; None: smaller at all.

    Raises:
        UsageError: `min_ratio` is no such number: one below 0 would hold nothing back.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    min_ratio: float | None = None

    def __post_init__(self) -> None:
        ratio = self.min_ratio
        if ratio is not None and not (math.isfinite(ratio) and ratio > 0):
            raise UsageError(
                f"the least ratio (--min-ratio) is {ratio:g}, expected a number above 0, such as 3"
            )


class GateError(PenstockError):
    """The artifact was made and refused; nothing was kept.

    Attributes:
        report: with the gates that failed, and all that was measured.
    """

    def __init__(self, report: ArtifactReport) -> None:
        failed = "; ".join(f"{g.name}: {g.detail}" for g in report.gates if not g.passed)
        super().__init__(f"{report.artifact}: refused, nothing was written: {failed}")
        self.report = report


def parse_floors(texts: list[str]) -> dict[str, float]:
    """`["accuracy=0.85"]` as `{"accuracy": 0.85}`.

    Raises:
        UsageError: one is not METRIC=VALUE, or the value is no finite number.
    """
    floors = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            floors[name.strip()] = number = float(value)
        except ValueError:
            number = math.nan
        if not (name.strip() and equals and math.isfinite(number)):
            raise UsageError(f"'{text}' is not METRIC=VALUE; write for example accuracy=0.85")
    return floors


def check_metrics(floors: Floors, taken: Iterable[str]) -> None:
    """Whether all metrics that have a floor are taken.

    Raises:
        UsageError: one is not.
    """
    names = list(taken)
    for name, floor in floors.metrics.items():
        if name not in names:
            need = "; accuracy needs labels (--labels)" if name == "accuracy" else ""
            raise UsageError(
                f"there is no metric '{name}' to hold at {floor:g}; taken: "
                f"{', '.join(names) or 'none'}{need}"
            )


def load_gate(artifact: Path, load: Callable[[Path], object]) -> Gate:
    """Whether the artifact can be loaded by what will run it; `load` closes what it opens."""
    try:
        load(artifact)
    except PenstockError as error:
        return Gate("loads", False, str(error))
    return Gate("loads", True, "loaded back and run")


def change_gate(changed: int, layers: int) -> Gate:
    """A quantizer that changed no layer did not do what was asked."""
    return Gate("changed", changed > 0, f"{changed} of {layers} weighted layers quantized")


def with_gates(report: ArtifactReport, floors: Floors, *, shrinks: bool = True) -> ArtifactReport:
    """The report with gates on size and metrics added to those it has.

    Metrics that were not taken because an earlier gate failed are left out: what failed says more.

    Args:
        shrinks: it must be smaller than its source; False: only as `min_ratio` has it, if at all.

    Raises:
        UsageError: a floor names a metric that was not taken.
    """
    gates = list(report.gates)
    if shrinks or floors.min_ratio is not None:
        gates.append(_size_gate(report, floors.min_ratio))
    by_name = {metric.name: metric for metric in report.metrics}
    if report.passed:
        check_metrics(floors, by_name)
    for name in [name for name in floors.metrics if name in by_name]:
        metric, floor = by_name[name], floors.metrics[name]
        better = metric.after >= floor if metric.higher_is_better else metric.after <= floor
        wanted = "at least" if metric.higher_is_better else "at most"
        gates.append(Gate(name, better, f"{metric.after:.4f}, wanted {wanted} {floor:g}"))
    return replace(report, gates=tuple(gates))


def _size_gate(report: ArtifactReport, min_ratio: float | None) -> Gate:
    seen = f"{report.source_bytes} to {report.artifact_bytes} bytes, {report.ratio:.2f}x smaller"
    if min_ratio is None:
        return Gate("smaller", report.artifact_bytes < report.source_bytes, seen)
    return Gate("min-ratio", report.ratio >= min_ratio, f"{seen}, wanted {min_ratio:g}x")
