"""What is in a file of splats, for people and for JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.compressed_ply import CHUNK, POSITIONS
from penstock.loaders.splats.dot_splat import count_dot_splat
from penstock.loaders.splats.file_access import file_size
from penstock.loaders.splats.fourdgs_file import read_fourdgs_with_losses
from penstock.loaders.splats.inria_ply import (
    check_columns,
    curve_error,
    read_times,
    rest_columns,
)
from penstock.loaders.splats.model import SH_COUNTS, SplatModel
from penstock.loaders.splats.ply_file import PlyFile, read_ply_header
from penstock.loaders.splats.rotor_file import read_rotors
from penstock.loaders.splats.rotors import band_losses, model_of_rotors
from penstock.loaders.splats.sog import read_sog_meta
from penstock.loaders.splats.sog_container import open_sog
from penstock.loaders.splats.spacetime_ply import spacetime_of_ply
from penstock.loaders.splats.splat_format import SplatFormat
from penstock.loaders.splats.spz_container import read_spz_header

Point = tuple[float, float, float]
Box = tuple[Point, Point]
Rows = tuple[tuple[str, str], ...]
ANTIALIASED = 1  # flag of SPZ


@dataclass(frozen=True)
class SplatSummary:
    """Facts of a file.

    Attributes:
        format: for people.
        nbytes: of the file, or of a folder's files.
        degree: of the spherical harmonics, as they are read.
        start, end: seconds, 0 of a static scene; fps where the file says it.
        box: lowest and highest means, where no splat need be read for it.
        details: rows for people: what the format alone has.
        lost: the same: what is not read of it, or read as something else.
    """

    path: Path
    format: str
    nbytes: int
    count: int
    degree: int
    dynamic: bool = False
    start: float = 0.0
    end: float = 0.0
    fps: float | None = None
    box: Box | None = None
    details: Rows = ()
    lost: Rows = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": str(self.path),
            "format": self.format,
            "bytes": self.nbytes,
            "count": self.count,
            "degree": self.degree,
            "dynamic": self.dynamic,
            "start": self.start,
            "end": self.end,
            "fps": self.fps,
            "box": None if self.box is None else [list(corner) for corner in self.box],
            "details": dict(self.details),
            "lost": dict(self.lost),
        }


def of_inria_ply(path: Path) -> SplatSummary:
    """From the header; from all of it where motions are curved: how far is not in the header."""
    ply = read_ply_header(path)
    vertex = ply.element("vertex")
    check_columns(ply)
    degree = SH_COUNTS[len(rest_columns(ply, vertex)) // 3 + 1]
    if not vertex.has("t_center"):
        return SplatSummary(path, "PLY", ply.size, vertex.count, degree)
    start, end, fps = read_times(ply)
    error = curve_error(ply)
    return SplatSummary(
        path, "PLY, moving", ply.size, vertex.count, degree, True, start, end, fps, None,
        _kept(ply), () if error is None else (_curves(error),),
    )  # fmt: skip


def _curves(distance: float) -> tuple[str, str]:
    return "curves", f"read as lines, at most {distance:.3g} away while seen"


def _kept(ply: PlyFile) -> Rows:
    widened = ply.numbers("sogst.cov2d_scale")
    if widened is None or all(value == 1 for value in widened):
        return ()
    factors = " by ".join(f"{value:g}" for value in widened)
    return (("footprints", f"to be widened by {factors}: see --footprint"),)


def of_compressed_ply(path: Path) -> SplatSummary:
    """From the header and the bounds of the chunks."""
    ply = read_ply_header(path)
    vertex, chunk = ply.element("vertex"), ply.element("chunk")
    rest = rest_columns(ply, ply.element("sh")) if "sh" in ply.elements else []
    bounds = ply.read(chunk, POSITIONS)
    return SplatSummary(
        path,
        "PlayCanvas compressed PLY",
        ply.size,
        vertex.count,
        SH_COUNTS[len(rest) // 3 + 1],
        box=_box(bounds[:, :3], bounds[:, 3:]),
        details=(("chunks", f"{chunk.count:,} of {CHUNK} splats"),),
    )


def of_spacetime_ply(path: Path) -> SplatSummary:
    """From all of it: how far its curves are from lines is not in the header."""
    ply = read_ply_header(path)
    found = spacetime_of_ply(ply)
    details = (("time", "a share of the clip; commands that draw take its seconds, or one"),)
    lost = (
        _curves(found.distance),
        ("turning", f"left out, at most {found.degrees:.3g} degrees"),
    )
    return _of_model(path, "Spacetime Gaussian PLY", ply.size, found.model, details, lost)


def of_rotors(path: Path) -> SplatSummary:
    """From all of it: a checkpoint has no header, and the colours' bands of time count."""
    rotors = read_rotors(path)
    model = model_of_rotors(rotors, path)
    rows: Rows = ()
    if rotors.bands > 1 and model.motion is not None:
        lost = band_losses(rotors, model.motion.t_sigmas)
        text = f"left out; at the end of a splat's life {lost.mean:.3g} of 1 wrong in the mean"
        if lost.largest > 0:
            rows = (("colours in time", f"{text}, {lost.largest:.3g} at most"),)
    return _of_model(path, "rotor 4D Gaussians", file_size(path), model, lost=rows)


def of_dot_splat(path: Path) -> SplatSummary:
    """From the size."""
    return SplatSummary(path, ".splat", file_size(path), count_dot_splat(path), 0)


def of_spz(path: Path) -> SplatSummary:
    """From the header."""
    header = read_spz_header(path)
    details = [("positions", f"{header.fraction} bits after the point")]
    if header.version == 1:
        details = [("positions", "float16")]
    if header.flags & ANTIALIASED:
        details.append(("trained", "with antialiasing, which is not drawn"))
    lost: Rows = ()
    if header.degree > max(SH_COUNTS.values()):
        lost = (("harmonics", f"of degree {header.degree}; those over 3 are left out"),)
    packing = "zstd" if header.version >= 4 else "gzip"
    return SplatSummary(
        path,
        f"SPZ v{header.version} ({packing})",
        file_size(path),
        header.count,
        min(header.degree, max(SH_COUNTS.values())),
        details=tuple(details),
        lost=lost,
    )


def of_sog(path: Path) -> SplatSummary:
    """From meta.json; the images that it names must be there."""
    with open_sog(path) as container:
        meta = read_sog_meta(container)
        for name in meta.images():
            container.check(name)
        nbytes = container.nbytes
    corners = np.array([meta.numbers("means", name, 3, 3) for name in ("mins", "maxs")])
    with np.errstate(over="ignore"):
        corners = np.sign(corners) * np.expm1(np.abs(corners))
    return SplatSummary(
        path,
        "SOG v2",
        nbytes,
        meta.count,
        meta.bands if meta.palette else 0,
        box=_box(corners[:1], corners[1:]) if meta.count else None,
        details=(("palette", f"{meta.palette:,} sets of coefficients"),) if meta.palette else (),
    )


def of_fourdgs(path: Path) -> SplatSummary:
    """From all of it, through its library."""
    found = read_fourdgs_with_losses(path)
    lost = []
    if found.cut:
        lost.append(("cut off", f"{found.cut:,} splats in the file, which fade out here"))
    if found.boxed:
        lost.append(("do not fade", f"{found.boxed:,} splats in the file; here they do"))
    return _of_model(path, ".4dgs", file_size(path), found.model, lost=tuple(lost))


def of_psplat(path: Path) -> SplatSummary:
    """From the header and the table of contents."""
    from penstock.loaders.splats.psplat_file import PsplatFile

    with PsplatFile.open(path) as file:
        info = file.info
    return SplatSummary(
        path,
        ".psplat",
        info.nbytes,
        info.count,
        info.degree,
        info.dynamic,
        info.start,
        info.end,
        info.fps,
        details=(("segments", f"{len(info.segments):,}"),),
    )


def _of_model(
    path: Path,
    kind: str,
    nbytes: int,
    model: SplatModel,
    details: Rows = (),
    lost: Rows = (),
) -> SplatSummary:
    motion = model.motion
    return SplatSummary(
        path,
        kind,
        nbytes,
        model.count,
        model.degree,
        model.dynamic,
        0.0 if motion is None else motion.start,
        0.0 if motion is None else motion.end,
        None if motion is None else motion.fps,
        _box(model.means, model.means),
        details,
        lost,
    )


def _box(low: NDArray[np.floating], high: NDArray[np.floating]) -> Box | None:
    """The lowest of `low` and the highest of `high`, [n, 3] each; None of no splats, or where a
    header's numbers are not finite."""
    if not (len(low) and np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    x0, y0, z0 = map(float, low.min(axis=0))
    x1, y1, z1 = map(float, high.max(axis=0))
    return (x0, y0, z0), (x1, y1, z1)


SUMMARIES: dict[SplatFormat, Callable[[Path], SplatSummary]] = {
    SplatFormat.INRIA_PLY: of_inria_ply,
    SplatFormat.COMPRESSED_PLY: of_compressed_ply,
    SplatFormat.SPACETIME_PLY: of_spacetime_ply,
    SplatFormat.ROTOR: of_rotors,
    SplatFormat.DOT_SPLAT: of_dot_splat,
    SplatFormat.SPZ: of_spz,
    SplatFormat.SOG: of_sog,
    SplatFormat.FOURDGS: of_fourdgs,
    SplatFormat.PSPLAT: of_psplat,
}
