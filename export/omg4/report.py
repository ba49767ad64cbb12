"""What a compression did: splats and bytes after each stage, and how good the pictures are."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.export.omg4.drawing import draw_model
from penstock.export.omg4.losses import psnr
from penstock.export.omg4.rasteriser import Rasteriser
from penstock.export.omg4.views import Truth
from penstock.loaders.splats.model import SplatModel

if TYPE_CHECKING:
    from rich.console import Group

ROTOR_BYTES = 644
"""Of an uncompressed rotor splat: 161 float32 (mean 3, time 1, scales 4, two quaternions 8, opacity
1, harmonics 144)."""


@dataclass(frozen=True)
class StageReport:
    """After a stage.

    Attributes:
        splats: that are left.
        nbytes: of all; in float32 until they are quantized.
        psnr: decibels against the truth, mean of the views that were held out; None where the
            pictures are the same in every bit, or where there are none.
        seconds: that it took.
    """

    stage: str
    splats: int
    nbytes: int
    psnr: float | None
    seconds: float


@dataclass(frozen=True)
class Quality:
    """Decibels, means over the held-out views; None: the same pictures, or no photos.

    Attributes:
        model_truth: the model that was given against the photos.
        compressed_truth: what the file decodes to against the photos.
        compressed_model: the same against the pictures of the model that was given.
    """

    model_truth: float | None
    compressed_truth: float | None
    compressed_model: float | None


@dataclass(frozen=True)
class CompressionReport:
    """The result of `pipeline.compress`.

    Attributes:
        source_splats, source_bytes: of the model that was given, in float32.
        splats, nbytes: of the compressed one, entropy-coded, with everything that a file has.
        fixed_bits: a splat, with numbers of fixed width and without codebooks: what the paper
            calls 22.75 bytes before Huffman coding.
        parts: bytes of the file by what they are for.
        stages: one after another.
        quality: on the views that nothing was trained with.
        views, held_out: how many; own: they show the model, for want of photos.
        moves: whether the scene does.
        settings: of the compression.
        notes: what a person should know.
    """

    source_splats: int
    source_bytes: int
    splats: int
    nbytes: int
    fixed_bits: float
    parts: dict[str, float]
    stages: tuple[StageReport, ...]
    quality: Quality
    views: int
    held_out: int
    moves: bool
    own: bool
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def bytes_a_splat(self) -> float:
        """Of the file; NaN without splats."""
        return self.nbytes / self.splats if self.splats else math.nan

    @property
    def rotor_ratio(self) -> float:
        """Bytes of the given splats as uncompressed rotor splats over those of the file."""
        return ROTOR_BYTES * self.source_splats / self.nbytes if self.nbytes else math.nan

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the ratios; that to rotor splats of a scene that moves."""
        found = asdict(self)
        rotor_ratio = self.rotor_ratio if self.moves else math.nan
        extra = {"bytes_a_splat": self.bytes_a_splat, "rotor_ratio": rotor_ratio}
        return found | {k: v if math.isfinite(v) else None for k, v in extra.items()}


def mean_psnr(rasteriser: Rasteriser, model: SplatModel, truth: Truth) -> float | None:
    """Decibels, the mean of the views; None where every picture is the same as its truth.

    Of views that are the same in every bit there is no number: they are left out.
    """
    found = []
    for number, view in enumerate(truth.views):
        wanted = truth.picture(number)
        found.append(psnr(draw_model(rasteriser, model, view.camera, view.time), wanted))
    finite = [one for one in found if math.isfinite(one)]
    return float(np.mean(finite)) if finite else None


def render(report: CompressionReport) -> Group:
    """Tables for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    stages = Table(
        title="compression",
        caption="PSNR of some of the views that are held out; below of all",
        caption_justify="left",
    )
    for name in ("stage", "splats", "bytes", "a splat", "PSNR", "seconds"):
        stages.add_column(name, justify="left" if name == "stage" else "right")
    for one in report.stages:
        share = f"{one.nbytes / one.splats:.2f}" if one.splats else "-"
        stages.add_row(
            one.stage,
            f"{one.splats:,}",
            f"{one.nbytes:,}",
            share,
            _decibels(one.psnr),
            f"{one.seconds:.1f}",
        )
    quality = report.quality
    lines = [f"{report.nbytes:,} bytes for {report.splats:,} splats"]
    if report.splats:
        lines[0] += (
            f", {report.fixed_bits / 8:.2f} bytes each before entropy coding and without "
            f"codebooks, {report.bytes_a_splat:.2f} in the file"
        )
        smaller = report.source_bytes / report.nbytes
        lines.append(
            f"{smaller:.3g} times smaller than the {report.source_splats:,} splats in 32-bit floats"
        )
        if report.moves:
            lines[-1] += f", {report.rotor_ratio:.3g} than as rotor splats of {ROTOR_BYTES} bytes"
    if not report.own:
        lines.append(
            f"against {report.held_out} of the photos: {_decibels(quality.model_truth)} before, "
            f"{_decibels(quality.compressed_truth)} after"
        )
    lines.append(f"against the given model: {_decibels(quality.compressed_model)}")
    return Group(stages, Text("\n".join([*lines, *report.notes])))


def _decibels(value: float | None) -> str:
    return "same" if value is None else f"{value:.2f} dB"
