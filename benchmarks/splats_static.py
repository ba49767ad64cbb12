"""Static scenes: .psplat beside SPZ and SOG, in bytes and in PSNR of the same pictures.

biker: the truth is what its compressed PLY decodes to; SPZ is the file that comes with it, and one
that our writer makes of the PLY. playbot, three levels of detail: the truth is what its SOG decodes
to; SPZ is what our writer makes of that. Both are of version 4, whose zstd is smaller than gzip.
There is no writer of SOG here, so biker has no SOG of its own, and a SOG is compared only where it
is the truth: ours must give back its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.splat_metrics import BEST, psnr
from benchmarks.splats_part import Job, Part, table, without_data
from penstock.export.omg4.pipeline import compress
from penstock.export.omg4.psplat_writer import write_content
from penstock.export.omg4.settings import CompressionSettings
from penstock.loaders.splats.formats import open_splats, summary
from penstock.loaders.splats.model import SplatModel, named_arrays
from penstock.loaders.splats.spz_writer import write_spz
from penstock.runtime.splats.camera import orbit
from penstock.runtime.splats.renderer import SplatRenderer

VIEWS, WIDTH, HEIGHT = 8, 480, 360
LEVELS = ("3_0", "5_0", "6_0")  # of playbot
ROUNDING = 3e-7  # of the largest number: 2.5 steps of float32 there
ORDER_DB = (
    0.01  # what the order of splats of one depth changes: 0.006 dB measured, of a shuffled SPZ
)
Pictures = list[np.ndarray[Any, np.dtype[np.float32]]]


def static(job: Job) -> Part:
    """Both scenes, in every format."""
    part = Part()
    if job.splats is None:
        return without_data(job, part)
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
    write_spz(made, model, version=4)
    spz_psnr = row("biker, our SPZ v4 of the PLY", open_splats(made), made.stat().st_size, truth)
    for name, settings, source in (
        ("biker, .psplat", CompressionSettings.static(), model),
        ("biker, .psplat of the SPZ, exact", CompressionSettings.exact(), theirs),
    ):
        small, nbytes = _through(source, settings, folder / "biker.psplat", job.threads)
        found = row(name, small, nbytes, truth)
        if source is theirs:
            _equal(part, name, theirs, small)
            _beside(part, name, (nbytes, found + ORDER_DB), (spz.stat().st_size, their_psnr))
        else:
            _beside(part, name, (nbytes, found), (spz.stat().st_size, their_psnr))
            _beside(part, name, (nbytes, found), (made.stat().st_size, spz_psnr))

    for level in LEVELS[2:] if job.quick else LEVELS:
        path, made = job.splats / "playbot" / level, folder / "playbot.spz"
        model = open_splats(path)
        views, sog = _views(model), summary(path).nbytes
        truth = _pictures(model, views, job.threads)
        row(f"playbot {level}, SOG (the truth)", model, sog, truth)
        write_spz(made, model, version=4)
        spz_bytes = made.stat().st_size
        spz_psnr = row(f"playbot {level}, our SPZ v4", open_splats(made), spz_bytes, truth)
        for name, settings in (
            (f"playbot {level}, .psplat, exact", CompressionSettings.exact()),
            (f"playbot {level}, .psplat", CompressionSettings.static()),
        ):
            small, nbytes = _through(model, settings, folder / "playbot.psplat", job.threads)
            found = row(name, small, nbytes, truth)
            if "exact" in name:
                _equal(part, name, model, small)
                _beside(part, name, (nbytes, found), (sog, BEST), "SOG")
            else:
                _beside(part, name, (nbytes, found), (spz_bytes, spz_psnr))
    part.tables.append(shown)
    part.report = {"rows": rows}
    return part


def _beside(
    part: Part, name: str, ours: tuple[int, float], theirs: tuple[int, float], what: str = "SPZ"
) -> None:
    """Bars: no more bytes than a file of another format, at no lower PSNR."""
    part.bar(ours[0] <= theirs[0], f"{name}: {ours[0]:,} bytes, {what} has {theirs[0]:,}")
    part.bar(ours[1] >= theirs[1], f"{name}: {ours[1]:.2f} dB, {what} {theirs[1]:.2f}")


def _equal(part: Part, name: str, source: SplatModel, read: SplatModel) -> None:
    """Bars: the numbers of the source, as they were decoded from its file.

    Colours and opacities bit for bit. Means, scales and rotations come of logarithms and roots of
    levels, which float32 rounds otherwise in another order of operations.
    """
    if read.count != source.count:
        part.bar(False, f"{name}: {read.count:,} splats of {source.count:,}")
        return
    one, other = _sorted(source), _sorted(read)
    turned = np.where((one["rotations"] * other["rotations"]).sum(axis=1) < 0, -1, 1)
    other["rotations"] *= turned[:, None].astype(np.float32)  # q and -q are the same rotation
    off = {key: float(np.abs(one[key] - other[key]).max()) for key in one}
    bits = [key for key in one if np.array_equal(one[key], other[key])]
    part.lines.append(
        f"{name}: {', '.join(bits)} equal bit for bit; the others at most "
        f"{max((off[key] for key in one if key not in bits), default=0.0):.1e} off"
    )
    for key in ("opacities", "sh"):
        part.bar(key in bits, f"{name}: {key} are {off[key]:.1e} off")
    for key in ("means", "scales", "rotations"):
        most = float(np.abs(one[key]).max())
        part.bar(off[key] <= ROUNDING * most, f"{name}: {key} are {off[key]:.1e} off of {most:.3g}")


def _sorted(model: SplatModel) -> dict[str, NDArray[np.float32]]:
    """The arrays with splats by their numbers: a .psplat has them in an order of its own.

    Every level of one is a level of the other, so equal ones come to the same places.
    """
    arrays = named_arrays(model)
    columns = [
        arrays[name].reshape(model.count, -1) for name in ("sh", "scales", "opacities", "means")
    ]
    order = np.lexsort(np.concatenate(columns, axis=1).T)
    return {name: array[order] for name, array in arrays.items()}


def _through(
    model: SplatModel, settings: CompressionSettings, out: Path, threads: int
) -> tuple[SplatModel, int]:
    """What a reader makes of the file that a compression writes, and its bytes."""
    made = compress(model, None, settings.with_changes(threads=threads))
    write_content(out, made.file)
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
