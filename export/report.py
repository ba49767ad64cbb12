"""What an export did and how good the result is: frozen values, JSON, tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Progress:
    """Where an export is.

    Attributes:
        stage: what is being done, for people.
        done, total: in `unit`; total 0 where it is not known.
    """

    stage: str
    done: int
    total: int
    unit: str


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class LayerReport:
    """One layer on held-out calibration text; shares are of the layer's neurons or as named.

    Attributes:
        active, predicted: share of neurons with an output, and predicted to have one.
        rank: of the predictor; 0: none.
        recall: share of the active magnitude that the predicted neurons carry.
        false_negative_rate: active neurons missed / active neurons.
        false_positive_rate: inactive neurons predicted / inactive neurons.
        output_error: |missed part of the output| / |output|, root mean square over tokens.
        run_before, run_after: mean length of a run of neighbouring misses, in source order and in
            the order that was written.
    """

    layer: int
    active: float
    predicted: float
    rank: int
    recall: float
    false_negative_rate: float
    false_positive_rate: float
    output_error: float
    run_before: float
    run_after: float


@dataclass(frozen=True)
class PerplexityReport:
    """A model on the held-out text.

    Attributes:
        label: which weights: `source (float32)`, `bundle Q8_0`...
        mode: `dense`, `predictor` or `exact`.
        tokens: predicted; characters: of text that they spell.
    """

    label: str
    mode: str
    tokens: int
    characters: int
    nats_per_token: float
    perplexity: float
    bits_per_character: float


@dataclass(frozen=True)
class ExportReport:
    """The result of `export_llm`.

    Attributes:
        source_bytes, source_format: weights before; bundle_bytes, dtype: the file after.
        ffn_bytes: of it, bundles, which can stay on storage.
        predictor_bytes: of it, predictors, which stay in memory.
        layers: empty when calibration was left out.
        perplexity: before and after, on held-out text; empty when evaluation was left out.
        calibration_tokens: that predictors and statistics come from.
        seconds: per stage.
        peak_memory_bytes: of this process, with whatever else it did before.
    """

    source: str
    out: str
    name: str
    arch: str
    activation: str
    dtype: str
    block: int
    stride: int
    source_bytes: int
    source_format: str
    bundle_bytes: int
    ffn_bytes: int
    predictor_bytes: int
    recall_target: float
    calibration_tokens: int
    layers: tuple[LayerReport, ...]
    perplexity: tuple[PerplexityReport, ...]
    seconds: dict[str, float]
    peak_memory_bytes: int

    @property
    def active(self) -> float:
        """Share of neurons active, mean over layers; NaN without calibration."""
        return _mean([layer.active for layer in self.layers])

    @property
    def predicted(self) -> float:
        """Share of neurons predicted, mean over layers; NaN without calibration."""
        return _mean([layer.predicted for layer in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def render(report: ExportReport) -> Group:
    """Tables for people: sizes, layers, perplexity."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [_sizes(report)]
    if report.layers:
        parts.append(_layers(report))
    if report.perplexity:
        parts.append(_perplexities(report))
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.seconds.items())
    parts.append(Text(f"{stages}; peak memory {_size(report.peak_memory_bytes)}"))
    return Group(*parts)


def _sizes(report: ExportReport) -> Any:
    from rich.table import Table

    table = Table(title=f"{report.name} ({report.arch}, {report.activation})")
    table.add_column("")
    table.add_column("format")
    table.add_column("size", justify="right")
    table.add_row("before", report.source_format, _size(report.source_bytes))
    table.add_row("after", report.dtype, _size(report.bundle_bytes))
    table.add_row("  of it neuron bundles", f"{report.stride} B each", _size(report.ffn_bytes))
    table.add_row("  of it predictors", "", _size(report.predictor_bytes))
    return table


def _layers(report: ExportReport) -> Any:
    from rich.table import Table

    table = Table(title=f"layers, on {report.calibration_tokens} tokens of calibration text")
    for name in (
        "layer", "active", "predicted", "rank", "recall", "missed", "false alarms", "output error",
        "run before", "run after",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for x in report.layers:
        table.add_row(
            str(x.layer), f"{x.active:.1%}", f"{x.predicted:.1%}", str(x.rank or "-"),
            f"{x.recall:.3f}", f"{x.false_negative_rate:.1%}", f"{x.false_positive_rate:.1%}",
            f"{x.output_error:.3f}", f"{x.run_before:.2f}", f"{x.run_after:.2f}",
        )  # fmt: skip
    return table


def _perplexities(report: ExportReport) -> Any:
    from rich.table import Table

    table = Table(title="held-out text")
    for name in ("weights", "mode", "tokens", "perplexity", "bits/character", "to the first"):
        table.add_column(name, justify="left" if name in ("weights", "mode") else "right")
    first = report.perplexity[0].perplexity
    for x in report.perplexity:
        table.add_row(
            x.label, x.mode, str(x.tokens), f"{x.perplexity:.3f}", f"{x.bits_per_character:.4f}",
            f"{x.perplexity / first - 1:+.2%}",
        )  # fmt: skip
    return table


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
