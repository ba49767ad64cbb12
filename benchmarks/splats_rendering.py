"""Rendering: the biker beside a scalar loop and a slow reference, and how cost grows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.splat_metrics import psnr
from benchmarks.splats_baseline import TUNED, Baseline
from benchmarks.splats_part import Job, Part, table, without_data
from benchmarks.splats_synthetic import ball
from penstock import _native
from penstock.loaders.splats.formats import open_splats
from penstock.loaders.splats.model import SEEN_SIGMAS, SplatModel
from penstock.runtime.splats.camera import Camera, extent, look_at, orbit
from penstock.runtime.splats.renderer import Frame, SplatRenderer
from tests.runtime.splats.reference import draw as reference

WIDTH, HEIGHT, FOV = 640, 480, 65.24  # 500 pixels of focal length
DISTANCE = 3.5  # of the biker's camera from its middle
MOST_MS, LEAST_SPEED_UP, LEAST_LEAD = 40.0, 1.7, 20.0
EQUAL, LEAST_EQUAL = 1 / 255, 0.999  # of the pixels
LEAST_FPS, CORES = 10.0, 2  # that it has
STEPS = (10_000, 30_000, 100_000, 300_000, 1_000_000)  # splats
ACTIVE, SECONDS = 30_000, 10.0  # at a time, of scenes that move; how long those last
SLACK = 1.15  # of growth from the first row of a series to any other, for noise
Draw = Callable[[], float]  # milliseconds
Rows = list[dict[str, Any]]


def rendering(job: Job) -> Part:
    """One picture of the biker: threads, instruction sets, the baseline, the reference."""
    part = Part()
    if job.splats is None and not job.quick:
        return without_data(job, part)
    model = ball(20_000) if job.quick else _biker(job)
    middle, _ = extent(model)
    camera = look_at(
        middle - DISTANCE * np.array([0.0, 0.2, 1.0]) / np.hypot(0.2, 1.0), middle,
        width=WIDTH, height=HEIGHT, fov_degrees=FOV,
    )  # fmt: skip
    baseline, tuned = Baseline(job.work), Baseline(job.work, tuned=True)
    contenders: dict[str, Draw] = {
        "scalar loop, splat by splat": lambda: baseline.draw(model, camera)[1],
        "scalar loop, tuned": lambda: tuned.draw(model, camera)[1],
    }
    wanted = reference(model, camera)  # in doubles
    likeness = min(
        psnr(np.clip(one.draw(model, camera)[0], 0, 1), np.clip(wanted, 0, 1))
        for one in (baseline, tuned)
    )
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
    loop, tuned_loop, one, two, _ = contenders
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
    tuned_lead = statistics.median(
        a / b for a, b in zip(spent[tuned_loop], spent[one], strict=True)
    )
    equal, worst = _equality(frames[one], wanted)
    same = all((frames[n].image == frames[one].image).all() for n in (one, two))
    part.lines += [
        f"{speed_up:.2f} times faster on two threads; two threads give "
        f"{'the same picture, bit for bit' if same else 'ANOTHER PICTURE'}",
        f"{lead:.1f} times the loop ({baseline.command}; its picture, cut at three standard "
        f"deviations, is {likeness:.1f} dB from the reference in doubles), which has a bar; "
        f"{tuned_lead:.1f} times the tuned loop ({' '.join(TUNED)}: no exponential where alpha is "
        "under 1/255), which has none",
        f"{equal:.4%} of the pixels within 1/255 of that reference, the worst "
        f"{worst * 255:.2f}/255 off",
    ]
    part.report = {"ms": {n: list(t) for n, t in spent.items()}, "equal": equal, "worst": worst}
    part.bar(ms <= MOST_MS, f"{ms:.1f} ms on one thread, bar {MOST_MS}")
    part.bar(speed_up >= LEAST_SPEED_UP, f"{speed_up:.2f} on two threads, bar {LEAST_SPEED_UP}")
    part.bar(lead >= LEAST_LEAD, f"{lead:.1f} times the scalar loop, bar {LEAST_LEAD}")
    part.bar(equal >= LEAST_EQUAL, f"{equal:.4%} of pixels equal, bar {LEAST_EQUAL:.1%}")
    part.bar(likeness > 30, f"a scalar loop draws another picture: {likeness:.1f} dB")
    part.bar(same, "two threads draw another picture than one")
    return part


def scaling(job: Job) -> Part:
    """How the time of a frame grows with splats, of which all or a few are active, and with pixels.

    Splats are as large as they are far apart, so each series draws a picture as full as before.
    """
    part = Part()
    steps = STEPS[:3] if job.quick else STEPS
    shown = table("growth, one thread", "", "active", "looked at", "visible", "pairs", "ms",
                  "ns an active splat")  # fmt: skip

    def series(name: str, scenes: list[tuple[str, SplatModel, tuple[int, int]]]) -> Rows:
        rows: Rows = []
        for label, model, (width, height) in scenes:
            camera = orbit(model, 1, width=width, height=height)[0]
            rows.append(_grow(label, model, camera, job))
            r = rows[-1]
            shown.add_row(
                label, f"{r['active']:,}", f"{r['looked_at']:,}", f"{r['visible']:,}",
                f"{r['pairs']:,}", f"{r['ms']:.1f}", f"{1e6 * r['ms'] / max(1, r['active']):.0f}",
            )  # fmt: skip
        for row in rows[1:]:  # each to the first, so that no slack is given twice
            more = row["active"] * row["pixels"] / (rows[0]["active"] * rows[0]["pixels"])
            grown = row["ms"] / rows[0]["ms"]
            part.bar(grown <= SLACK * more,
                     f"{name}: {row['name']} take {grown:.2f} times the ms of {rows[0]['name']}, "
                     f"bar {SLACK:g} x {more:.2f}")  # fmt: skip
        shown.add_section()
        return rows

    size = (WIDTH, HEIGHT)
    still = [(f"{count:,} splats", ball(count), size) for count in steps]
    part.report["splats"] = series("all active", still)
    moving = [
        (f"{total:,} moving splats", _few_at_a_time(total), size)
        for total in steps
        if total >= ACTIVE
    ]
    part.report["active"] = series(f"{ACTIVE:,} active", moving)
    sizes = ((320, 240), size, (1280, 960))
    larger = [(f"{steps[2]:,} splats, {w} x {h}", still[2][1], (w, h)) for w, h in sizes]
    part.report["pixels"] = series("pixels", larger)
    part.tables.append(shown)
    return part


def dynamic(job: Job) -> Part:
    """A moving scene with harmonics of degree 3, from a camera that moves: two cores."""
    part = Part()
    count = 10_000 if job.quick else 150_000
    model = ball(count, seconds=2.0, life=0.5, degree=3)
    threads = min(CORES, job.threads)
    rows = {}
    shown = table(f"{count:,} moving splats of degree 3, {WIDTH} x {HEIGHT}, {threads} threads",
                  "colours", "frames/s", "ms", "95 %", "colour", "rest", "active",
                  "visible")  # fmt: skip
    frames = 12 if job.quick else 60
    cameras = orbit(model, frames, width=WIDTH, height=HEIGHT, turn_degrees=180)
    for name, tolerance in (("exact", 0.0), ("refreshed at 0.004 radians", 0.004)):
        renderer = SplatRenderer(model, threads=threads, colour_tolerance=tolerance)
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


def _few_at_a_time(total: int) -> SplatModel:
    """A scene of so many splats of which `ACTIVE` are active in its middle; none stays."""
    return ball(
        total, seconds=SECONDS, life=SECONDS * ACTIVE / total / (2 * SEEN_SIGMAS), lasting=0.0
    )


def _grow(name: str, model: SplatModel, camera: Camera, job: Job) -> dict[str, Any]:
    """One picture from the middle of the scene, several times: milliseconds of the clock."""
    renderer = SplatRenderer(model, threads=1)
    motion, time, active = model.motion, 0.0, model.count
    if motion is not None:
        time = (motion.start + motion.end) / 2
        away = np.abs(time - motion.t_centers) / motion.t_sigmas
        active = int((away < SEEN_SIGMAS).sum())
    spent = []
    for _ in range(4 if job.quick else 12):
        begin = perf_counter()
        found = renderer.render(camera, time).times
        spent.append(1000 * (perf_counter() - begin))
    return {"name": name, "active": active, "looked_at": found.active, "visible": found.visible,
            "pairs": found.pairs, "pixels": camera.width * camera.height,
            "ms": statistics.median(spent[1:])}  # fmt: skip
