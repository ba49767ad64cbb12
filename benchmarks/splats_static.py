"""Static scenes: .psplat beside SPZ and SOG, in bytes and in PSNR of the same pictures.

biker: the truth is what its compressed PLY decodes to; SPZ is the file that comes with it, and one
that our writer makes of the PLY. playbot: the truth is what its SOG decodes to, which ours must
give back, or come near in fewer bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.splat_metrics import BEST, psnr
from benchmarks.splats_part import Job, Part, table
from penstock.export.omg4.pipeline import compress
from penstock.export.omg4.psplat_writer import write_psplat
from penstock.export.omg4.settings import CompressionSettings
from penstock.loaders.splats.formats import open_splats, summary
from penstock.loaders.splats.model import SplatModel
from penstock.loaders.splats.spz_writer import write_spz
from penstock.runtime.splats.camera import orbit
from penstock.runtime.splats.renderer import SplatRenderer

VIEWS, WIDTH, HEIGHT = 8, 480, 360
LEVELS = ("3_0", "5_0", "6_0")  # of playbot
Pictures = list[np.ndarray[Any, np.dtype[np.float32]]]


def static(job: Job) -> Part:
    """Both scenes, in every format."""
    part = Part()
    if job.splats is None:
        part.lines.append("static: the shared data is not there")
        return part
    folder = job.work / "splats"
    folder.mkdir(parents=True, exist_ok=True)
    shown = table("static scenes", "file", "splats", "bytes", "a splat", "PSNR")
    rows: list[dict[str, Any]] = []

    def row(name: str, model: SplatModel, nbytes: int, truth: Pictures) -> float:
        ours = _pictures(model, views, job.threads)
        found = float(np.mean([psnr(a, b) for a, b in zip(ours, truth, strict=True)]))
        text = "the same" if found == BEST else f"{found:.2f}"
        shown.add_row(name, f"{model.count:,}", f"{nbytes:,}", f"{nbytes / model.count:.2f}", text)
        rows.append({"name": name, "splats": model.count, "bytes": nbytes, "psnr": found})
        return found

    ply, spz = job.splats / "biker.compressed.ply", job.splats / "biker.spz"
    model, theirs = open_splats(ply), open_splats(spz)
    views = _views(model)
    truth = _pictures(model, views, job.threads)
    row("biker, compressed PLY (the truth)", model, ply.stat().st_size, truth)
    their_psnr = row("biker, its SPZ v4", theirs, spz.stat().st_size, truth)
    made = folder / "biker.spz"
    write_spz(made, model)
    spz_psnr = row("biker, our SPZ of the PLY", open_splats(made), made.stat().st_size, truth)
    least = min(spz.stat().st_size, made.stat().st_size)
    best = max(their_psnr, spz_psnr)
    for name, settings, source in (
        ("biker, .psplat", CompressionSettings.static(), model),
        ("biker, .psplat of the SPZ, exact", CompressionSettings.exact(), theirs),
    ):
        small, nbytes = _through(source, settings, folder / "biker.psplat", job.threads)
        found = row(name, small, nbytes, truth)
        if source is theirs:
            part.bar(nbytes <= spz.stat().st_size,
                     f"{name}: {nbytes:,} bytes, SPZ has {spz.stat().st_size:,}")  # fmt: skip
            part.bar(found >= their_psnr, f"{name}: {found:.2f} dB, SPZ {their_psnr:.2f}")
        else:
            part.bar(nbytes <= least, f"{name}: {nbytes:,} bytes, SPZ has {least:,}")
            part.bar(found >= best, f"{name}: {found:.2f} dB, SPZ {best:.2f}")

    for level in LEVELS[2:] if job.quick else LEVELS:
        path = job.splats / "playbot" / level
        model = open_splats(path)
        views, sog = _views(model), summary(path).nbytes
        truth = _pictures(model, views, job.threads)
        row(f"playbot {level}, SOG (the truth)", model, sog, truth)
        for name, settings in (
            (f"playbot {level}, .psplat, exact", CompressionSettings.exact()),
            (f"playbot {level}, .psplat", CompressionSettings.static()),
        ):
            small, nbytes = _through(model, settings, folder / "playbot.psplat", job.threads)
            found = row(name, small, nbytes, truth)
            if "exact" in name:
                part.bar(found == BEST, f"{name}: {found:.2f} dB, SOG is the truth")
                part.bar(nbytes <= sog, f"{name}: {nbytes:,} bytes, SOG has {sog:,}")
    part.tables.append(shown)
    part.report = {"rows": rows}
    return part


def _through(
    model: SplatModel, settings: CompressionSettings, out: Path, threads: int
) -> tuple[SplatModel, int]:
    """What a reader makes of the file that a compression writes, and its bytes."""
    made = compress(model, None, settings.with_changes(threads=threads))
    write_psplat(out, made.encoded)
    return open_splats(out), out.stat().st_size


def _views(model: SplatModel) -> Sequence[Any]:
    above = orbit(model, VIEWS // 2, width=WIDTH, height=HEIGHT, elevation_degrees=25)
    below = orbit(
        model, VIEWS // 2, width=WIDTH, height=HEIGHT, elevation_degrees=0, azimuth_degrees=45
    )
    return [*above, *below]


def _pictures(model: SplatModel, views: Sequence[Any], threads: int) -> Pictures:
    renderer = SplatRenderer(model, threads=threads)
    return [np.clip(renderer.render(camera).image, 0, 1) for camera in views]
