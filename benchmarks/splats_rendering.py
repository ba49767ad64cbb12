"""Rendering: the biker beside a scalar loop and a slow reference, and how cost grows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.splat_metrics import psnr
from benchmarks.splats_baseline import Baseline
from benchmarks.splats_part import Job, Part, table
from benchmarks.splats_synthetic import ball
from penstock import _native
from penstock.loaders.splats.formats import open_splats
from penstock.loaders.splats.model import SplatModel
from penstock.runtime.splats.camera import Camera, extent, look_at, orbit
from penstock.runtime.splats.renderer import Frame, SplatRenderer
from tests.runtime.splats.reference import draw as reference

WIDTH, HEIGHT, FOV = 640, 480, 65.24  # 500 pixels of focal length
DISTANCE = 3.5  # of the biker's camera from its middle
MOST_MS, LEAST_SPEED_UP, LEAST_LEAD = 40.0, 1.7, 20.0
EQUAL, LEAST_EQUAL = 1 / 255, 0.999  # of the pixels
LEAST_FPS = 10.0
STEPS = (10_000, 30_000, 100_000, 300_000, 1_000_000)  # splats
SLACK = 1.15  # of growth, for noise
Draw = Callable[[], float]  # milliseconds


def rendering(job: Job) -> Part:
    """One picture of the biker: threads, instruction sets, the baseline, the reference."""
    part = Part()
    model = ball(20_000) if job.splats is None or job.quick else _biker(job)
    middle, _ = extent(model)
    camera = look_at(
        middle - DISTANCE * np.array([0.0, 0.2, 1.0]) / np.hypot(0.2, 1.0), middle,
        width=WIDTH, height=HEIGHT, fov_degrees=FOV,
    )  # fmt: skip
    baseline = Baseline(job.work)
    contenders: dict[str, Draw] = {
        "scalar loop, splat by splat": lambda: baseline.draw(model, camera)[1]
    }
    wanted = reference(model, camera)  # in doubles
    likeness = psnr(np.clip(baseline.draw(model, camera)[0], 0, 1), np.clip(wanted, 0, 1))
    best = _native.kernels_name()
    frames: dict[str, Frame] = {}

    def ours(name: str, kernels: str, threads: int) -> None:
        renderer = SplatRenderer(model, threads=threads)

        def run() -> float:
            _native.kernels_select(kernels)
            begin = perf_counter()
            frames[name] = renderer.render(camera)
            spent = 1000 * (perf_counter() - begin)
            _native.kernels_select(best)
            return spent

        contenders[name] = run

    wide = "avx2" if "avx2" in _native.kernels_available() else best
    ours(f"penstock, {wide}, 1 thread", wide, 1)
    ours(f"penstock, {wide}, 2 threads", wide, 2)
    ours("penstock, scalar kernels, 1 thread", "scalar", 1)
    spent = _by_turns(contenders, rounds=3 if job.quick else 15)
    loop, one, two, _ = contenders
    shown = table(f"{model.count:,} splats, {WIDTH} x {HEIGHT}", "", "ms", "best", "project",
                  "sort", "bin", "blend", "times the loop")  # fmt: skip
    for name, times in spent.items():
        parts = [""] * 4
        if name in frames:
            t = frames[name].times
            parts = [f"{v:.1f}" for v in (t.project_ms, t.sort_ms, t.bin_ms, t.blend_ms)]
        lead = statistics.median(a / b for a, b in zip(spent[loop], times, strict=True))
        shown.add_row(
            name, f"{statistics.median(times):.1f}", f"{min(times):.1f}", *parts, f"{lead:.1f}"
        )
    part.tables.append(shown)
    ms = statistics.median(spent[one])
    speed_up = statistics.median(a / b for a, b in zip(spent[one], spent[two], strict=True))
    lead = statistics.median(a / b for a, b in zip(spent[loop], spent[one], strict=True))
    equal, worst = _equality(frames[one], wanted)
    same = all((frames[n].image == frames[one].image).all() for n in (one, two))
    part.lines += [
        f"{speed_up:.2f} times faster on two threads; two threads give "
        f"{'the same picture, bit for bit' if same else 'ANOTHER PICTURE'}",
        f"{lead:.1f} times the loop ({baseline.command}; its picture, cut at three standard "
        f"deviations, is {likeness:.1f} dB from the reference in doubles)",
        f"{equal:.4%} of the pixels within 1/255 of that reference, the worst "
        f"{worst * 255:.2f}/255 off",
    ]
    part.report = {"ms": {n: list(t) for n, t in spent.items()}, "equal": equal, "worst": worst}
    part.bar(ms <= MOST_MS, f"{ms:.1f} ms on one thread, bar {MOST_MS}")
    part.bar(speed_up >= LEAST_SPEED_UP, f"{speed_up:.2f} on two threads, bar {LEAST_SPEED_UP}")
    part.bar(lead >= LEAST_LEAD, f"{lead:.1f} times the scalar loop, bar {LEAST_LEAD}")
    part.bar(equal >= LEAST_EQUAL, f"{equal:.4%} of pixels equal, bar {LEAST_EQUAL:.1%}")
    part.bar(likeness > 30, f"the scalar loop draws another picture: {likeness:.1f} dB")
    part.bar(same, "two threads draw another picture than one")
    return part


def scaling(job: Job) -> Part:
    """How the time of a frame grows with splats, and with pixels."""
    part = Part()
    steps = STEPS[:3] if job.quick else STEPS
    shown = table("growth, one thread", "", "active", "visible", "pairs", "ms", "ns a splat")
    rows: list[dict[str, Any]] = []
    for count in steps:
        model = ball(count)
        camera = orbit(model, 1, width=WIDTH, height=HEIGHT)[0]
        _grow(shown, rows, f"{count:,} splats", model, camera, job)
    for before, now in zip(rows, rows[1:], strict=False):
        most = SLACK * now["active"] / before["active"]
        grown = now["ms"] / before["ms"]
        part.bar(grown <= most, f"{now['name']}: {grown:.2f} times the ms of {before['name']}, "
                                f"bar {most:.2f}")  # fmt: skip
    model, sizes = ball(steps[2]), ((320, 240), (640, 480), (1280, 960))
    pictures: list[dict[str, Any]] = []
    for width, height in sizes:
        camera = orbit(model, 1, width=width, height=height)[0]
        _grow(shown, pictures, f"{steps[2]:,} splats, {width} x {height}", model, camera, job)
    for before, now in zip(pictures, pictures[1:], strict=False):
        grown = now["ms"] / before["ms"]
        part.bar(grown <= 4 * SLACK, f"{now['name']}: {grown:.2f} times the ms at a quarter of the "
                                     "pixels, bar 4")  # fmt: skip
    part.tables.append(shown)
    part.report = {"splats": rows, "pixels": pictures}
    return part


def dynamic(job: Job) -> Part:
    """A moving scene with harmonics of degree 3, from a camera that moves: all cores."""
    part = Part()
    count = 10_000 if job.quick else 150_000
    model = ball(count, seconds=2.0, life=0.5, degree=3)
    rows = {}
    shown = table(f"{count:,} moving splats of degree 3, {WIDTH} x {HEIGHT}, {job.threads} threads",
                  "colours", "frames/s", "ms", "95 %", "colour", "rest", "active",
                  "visible")  # fmt: skip
    frames = 12 if job.quick else 60
    cameras = orbit(model, frames, width=WIDTH, height=HEIGHT, turn_degrees=180)
    for name, tolerance in (("exact", 0.0), ("refreshed at 0.004 radians", 0.004)):
        renderer = SplatRenderer(model, threads=job.threads, colour_tolerance=tolerance)
        renderer.render(cameras[0], 0.0)
        spent, found = [], []
        for n, camera in enumerate(cameras):
            begin = perf_counter()
            found.append(renderer.render(camera, 2.0 * n / frames).times)
            spent.append(1000 * (perf_counter() - begin))
        fps = 1000 / statistics.mean(spent)
        colour = statistics.median(t.colour_ms for t in found)
        shown.add_row(
            name, f"{fps:.1f}", f"{statistics.median(spent):.1f}",
            f"{statistics.quantiles(spent, n=20)[-1]:.1f}", f"{colour:.1f}",
            f"{statistics.median(t.total_ms - t.colour_ms for t in found):.1f}",
            f"{statistics.median(t.active for t in found):,.0f}",
            f"{statistics.median(t.visible for t in found):,.0f}",
        )  # fmt: skip
        rows[name] = {"fps": fps, "ms": spent}
        part.bar(fps >= LEAST_FPS, f"{name}: {fps:.1f} frames a second, bar {LEAST_FPS}")
    part.tables.append(shown)
    part.report = rows
    return part


def _biker(job: Job) -> SplatModel:
    assert job.splats is not None
    return open_splats(job.splats / "biker.compressed.ply")


def _by_turns(contenders: dict[str, Draw], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each contender in each round, after one that is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            ms = run()
            if number:
                spent[name].append(ms)
    return spent


def _equality(frame: Frame, wanted: NDArray[np.float64]) -> tuple[float, float]:
    """Share of the pixels within 1/255 in every channel of the reference, and the worst error."""
    off = np.abs(np.clip(frame.image, 0, 1) - np.clip(wanted, 0, 1)).max(axis=2)
    return float((off <= EQUAL).mean()), float(off.max())


def _grow(
    shown: Any, rows: list[dict[str, Any]], name: str, model: SplatModel, camera: Camera, job: Job
) -> None:
    """One more row of the table of growth."""
    renderer = SplatRenderer(model, threads=1)
    found = [renderer.render(camera).times for _ in range(4 if job.quick else 12)][1:]
    ms = statistics.median(t.total_ms for t in found)
    last = found[-1]
    shown.add_row(
        name, f"{last.active:,}", f"{last.visible:,}", f"{last.pairs:,}", f"{ms:.1f}",
        f"{1e6 * ms / max(1, last.active):.0f}",
    )  # fmt: skip
    rows.append({"name": name, "active": last.active, "visible": last.visible,
                 "pairs": last.pairs, "ms": ms})  # fmt: skip
