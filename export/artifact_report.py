"""What every export and quantization ends in: one artifact, one report, the same for all formats.

The figures come from the written artifact, loaded back; see `penstock.export.gates` for what is
refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

WORST_TENSORS = 12  # that are shown to people; JSON has all


@dataclass(frozen=True)
class Metric:
    """One figure of the artifact beside that of the model it was made from.

    Attributes:
        name: `accuracy`, `sqnr_db`, `cosine`, `perplexity`, `cider_d`, ...
        before: of the source model; None where the figure compares the two (SQNR, cosine).
        after: of the artifact.
        samples: that it was taken over.
        higher_is_better: False for errors and perplexity.
    """

    name: str
    before: float | None
    after: float
    samples: int
    higher_is_better: bool = True

    @property
    def delta(self) -> float | None:
        """after - before; None where there is no before."""
        return None if self.before is None else self.after - self.before


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one run, in milliseconds, over `runs` runs on `threads` threads."""

    p50_ms: float
    p95_ms: float
    runs: int
    threads: int


@dataclass(frozen=True)
class LayerSensitivity:
    """What it costs to quantize this layer alone.

    Attributes:
        layer: its node's name in the source model.
        operator: `Conv`, `FULLY_CONNECTED`, ...
        precision: that it was given: `int8`, `int4`, ...
        parameters: of the layer.
        saved_bytes: by giving it this precision instead of float.
        sqnr_db: of the model's outputs against the float model's.
        drop: in the metric asked for, in its own unit; None without labels.
    """

    layer: str
    operator: str
    precision: str
    parameters: int
    saved_bytes: int
    sqnr_db: float
    drop: float | None = None


@dataclass(frozen=True)
class TensorError:
    """What a format does to one tensor.

    Attributes:
        before: its format in the source; precision: in the artifact.
        nbytes: in the artifact.
        relative_rmse: root of the squared error over the squared values; 0 of one that was copied.
    """

    tensor: str
    before: str
    precision: str
    nbytes: int
    relative_rmse: float


@dataclass(frozen=True)
class Gate:
    """A check after writing.

    Attributes:
        name: `loads`, `changed`, `smaller`, `min-ratio`, `accuracy`, ...
        passed: the artifact is kept only where all gates passed.
        detail: what was seen and what was wanted.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class ArtifactReport:
    """The result of one export or quantization.

    Attributes:
        target: `onnx`, `litert`, `gguf`, `captioner`.
        recipe: what was done, as the command takes it: `static-int8 percentile per-channel`.
        source_bytes, artifact_bytes: of all files that belong to each.
        precisions: precision given to each weighted layer, by name of the layer.
        tensors: errors of weights, where the export took them.
        notes: what a person should know: repairs, layers left alone, why.
        seconds: per stage.
    """

    source: str
    artifact: str
    target: str
    recipe: str
    source_bytes: int
    artifact_bytes: int
    metrics: tuple[Metric, ...] = ()
    latency_before: Latency | None = None
    latency_after: Latency | None = None
    sensitivity: tuple[LayerSensitivity, ...] = ()
    precisions: dict[str, str] = field(default_factory=dict)
    tensors: tuple[TensorError, ...] = ()
    gates: tuple[Gate, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Times smaller than the source."""
        return self.source_bytes / self.artifact_bytes

    @property
    def passed(self) -> bool:
        """All gates held."""
        return all(gate.passed for gate in self.gates)

    def metric(self, name: str) -> Metric:
        """The metric of that name.

        Raises:
            KeyError: it was not taken.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"ratio": self.ratio, "passed": self.passed}


def render_artifact(report: ArtifactReport) -> Group:
    """Tables for people: size and latency, metrics, sensitivity, gates, notes."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [_sizes(report)]
    if report.metrics:
        parts.append(_metrics(report))
    if report.sensitivity:
        parts.append(_sensitivity(report))
    if report.tensors:
        parts.append(_tensors(report))
    parts += [
        Text(f"{'passed' if g.passed else 'FAILED'}  {g.name}: {g.detail}") for g in report.gates
    ]
    parts += [Text(f"note: {note}") for note in (*_timing(report), *report.notes)]
    if report.seconds:
        stages = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in report.seconds.items())
        parts.append(Text(stages))
    return Group(*parts)


def _timing(report: ArtifactReport) -> tuple[str, ...]:
    """What p50 and p95 are of."""
    timed = report.latency_after or report.latency_before
    if timed is None:
        return ()
    threads = "1 thread" if timed.threads == 1 else f"{timed.threads} threads"
    return (f"p50 and p95 are of {timed.runs} runs on {threads}",)


def _sizes(report: ArtifactReport) -> Any:
    table = _table(f"{report.target}: {report.recipe}", ("", "size", "smaller", "p50", "p95"))
    for name, nbytes, latency, ratio in (
        (report.source, report.source_bytes, report.latency_before, ""),
        (report.artifact, report.artifact_bytes, report.latency_after, f"{report.ratio:.2f}x"),
    ):
        times = ("", "") if latency is None else _milliseconds(latency)
        table.add_row(Path(name).name, _bytes(nbytes), ratio, *times)
    return table


def _metrics(report: ArtifactReport) -> Any:
    table = _table("", ("metric", "before", "after", "change", "samples"))
    for metric in report.metrics:
        before = "" if metric.before is None else f"{metric.before:.4f}"
        change = "" if metric.delta is None else f"{metric.delta:+.4f}"
        table.add_row(metric.name, before, f"{metric.after:.4f}", change, str(metric.samples))
    return table


def _sensitivity(report: ArtifactReport) -> Any:
    names = ("layer", "operator", "precision", "parameters", "saved", "SQNR dB", "drop")
    table = _table("each layer quantized alone, worst first", names)
    for layer in sorted(report.sensitivity, key=lambda layer: layer.sqnr_db):
        table.add_row(
            layer.layer, layer.operator, layer.precision, str(layer.parameters),
            _bytes(layer.saved_bytes), f"{layer.sqnr_db:.1f}",
            "" if layer.drop is None else f"{layer.drop:.4f}",
        )  # fmt: skip
    return table


def _tensors(report: ArtifactReport) -> Any:
    title = f"error of weights, the worst {WORST_TENSORS} of {len(report.tensors)} tensors"
    table = _table(title, ("tensor", "before", "after", "size", "relative RMSE"))
    worst = sorted(report.tensors, key=lambda one: -one.relative_rmse)[:WORST_TENSORS]
    for one in worst:
        table.add_row(
            one.tensor, one.before, one.precision, _bytes(one.nbytes), f"{one.relative_rmse:.4f}"
        )
    return table


def _table(title: str, columns: tuple[str, ...]) -> Any:
    from rich.table import Table

    table = Table(title=title or None)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    return table


def _milliseconds(latency: Latency) -> tuple[str, str]:
    return f"{latency.p50_ms:.2f} ms", f"{latency.p95_ms:.2f} ms"


def _bytes(count: int) -> str:
    if abs(count) < 1024:
        return f"{count} B"
    kib = count / 1024
    return f"{kib:.1f} KiB" if abs(kib) < 1024 else f"{kib / 1024:.2f} MiB"
