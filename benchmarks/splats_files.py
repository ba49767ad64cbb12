"""Files: how fast .psplat is decoded, and whether playing keeps its memory budget."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.capped import Cage
from benchmarks.splats_part import Job, Part, table, without_data
from benchmarks.splats_synthetic import ball
from penstock.export.omg4.psplat_writer import write_psplat
from penstock.export.omg4.static_quantization import quantize_splats
from penstock.loaders.file_mapping import forget_cached
from penstock.loaders.splats.formats import open_splats
from penstock.loaders.splats.model import SplatModel, select
from penstock.loaders.splats.psplat_file import PsplatFile
from penstock.runtime.budget import format_size

CHILD = Path(__file__).resolve().parent / "splats_child.py"
MOST_DECODE_MS = 100.0
SHARE = 0.25  # of the decoded scene, that playing may take
WIDTH, HEIGHT = 320, 240


def decoding(job: Job) -> Part:
    """From a file on the disk, read past the page cache, to a model in memory, on one thread and
    on all."""
    part = Part()
    if job.splats is None and not job.quick:
        without_data(job, part)  # the scene that was captured; those that are made are measured
    folder = job.work / "splats"
    folder.mkdir(parents=True, exist_ok=True)
    count = 10_000 if job.quick else 150_000
    models = {
        f"{count:,} moving, degree 1": ball(count, seconds=10.0, degree=1),
        f"{count:,} moving, degree 0": ball(count, seconds=10.0),
        f"{count:,} still, degree 3": ball(count, degree=3),
    }
    if job.splats is not None and not job.quick:
        models["biker"] = open_splats(job.splats / "biker.spz")
    shown = table(f"decoding, {job.threads} threads", "file", "splats", "bytes", "a splat", "ms",
                  "best", "one thread", "MB/s decoded")  # fmt: skip
    rows = []
    for name, model in models.items():
        path = folder / "decode.psplat"
        write_psplat(path, quantize_splats(model))
        nbytes = 0
        spent: dict[int, list[float]] = {1: [], job.threads: []}
        for _ in range(3 if job.quick else 11):
            for threads, found in spent.items():
                begin = perf_counter()
                with PsplatFile.open(path) as file:
                    nbytes = file.read_all(threads=threads).nbytes
                found.append(1000 * (perf_counter() - begin))
        times = spent[job.threads]
        ms, size = statistics.median(times), path.stat().st_size
        shown.add_row(name, f"{model.count:,}", f"{size:,}", f"{size / model.count:.2f}",
                      f"{ms:.1f}", f"{min(times):.1f}", f"{statistics.median(spent[1]):.1f}",
                      f"{nbytes / ms / 1e3:,.0f}")  # fmt: skip
        rows.append({"name": name, "splats": model.count, "bytes": size, "ms": times,
                     "ms on one thread": spent[1]})  # fmt: skip
        part.bar(ms <= MOST_DECODE_MS, f"{name}: {ms:.0f} ms to decode, bar {MOST_DECODE_MS:.0f}")
        path.unlink()
    part.tables.append(shown)
    part.report = {"rows": rows}
    return part


def memory(job: Job) -> Part:
    """A long scene, played in a quarter of what it takes decoded, under a hard cap."""
    part = Part()
    folder = job.work / "splats"
    folder.mkdir(parents=True, exist_ok=True)
    # What a player needs for any scene, some 10 MB, is more than a quarter of a small one.
    count, seconds, share = (200_000, 40.0, 1.0) if job.quick else (1_200_000, 80.0, SHARE)
    path, warm = folder / "long.psplat", folder / "warm.psplat"
    model = _short_lived(ball(count, seconds=seconds, life=0.25, degree=1))
    write_psplat(path, quantize_splats(model))
    write_psplat(warm, quantize_splats(_short_lived(ball(300, seconds=2.0, life=0.25, degree=1))))
    whole = model.nbytes
    budget = int(share * whole)
    _child(warm, path, 0, None)  # brings libraries into the page cache; others pay for it
    bare = _child(warm, path, 0, None)["peak"]
    cap = bare + budget
    shown = table(
        f"{model.count:,} splats over {seconds:g} s, {format_size(whole)} decoded, pictures of "
        f"{WIDTH} x {HEIGHT}",
        "budget", "frames/s", "ms", "95 %", "most counted", "most of its group",
        "over the bare one",
    )  # fmt: skip
    rows: dict[str, Any] = {"whole": whole, "budget": budget, "bare": bare, "cap": cap}
    with Cage(cap) as cage:
        rows["cap_kind"] = cage.memory_kind
    quarter = f"{share:.0%}: {format_size(budget)}"
    for name, memory_budget, limit in (
        (f"{quarter}, hard cap", budget, cap),  # which it lives in, or it is killed
        (quarter, budget, None),  # how much it takes where nothing stops it
        ("none", -1, None),
    ):
        try:
            found = _child(warm, path, memory_budget, limit)
        except RuntimeError as error:
            part.missed.append(f"playing under {name}: {error}"[:300])
            shown.add_row(name, "failed", *[""] * 5)
            continue
        times = found["ms"]
        over = found["peak"] - bare
        shown.add_row(
            name, f"{1000 / statistics.mean(times):.1f}", f"{statistics.median(times):.1f}",
            f"{statistics.quantiles(times, n=20)[-1]:.1f}", format_size(found["counted"]),
            format_size(found["peak"]), format_size(over),
        )  # fmt: skip
        rows[name] = found
        if memory_budget == budget:
            counted = found["counted"]
            part.bar(counted <= budget, f"{counted:,} bytes counted, budget {budget:,}")
            part.bar(over <= budget, f"{over:,} bytes over the bare process, budget {budget:,}")
    part.lines.append(
        f"hard cap: {format_size(cap)} ({rows['cap_kind']}), the bare process's "
        f"{format_size(bare)} and the budget"
    )
    part.tables.append(shown)
    part.report = rows
    path.unlink()
    return part


def _short_lived(model: SplatModel) -> SplatModel:
    """Without those that stay for ever: a long scene is one that changes all the time."""
    assert model.motion is not None
    return select(model, np.flatnonzero(model.motion.t_sigmas < 1))


def _child(warm: Path, path: Path, budget: int, cap: int | None) -> dict[str, Any]:
    """One play through in a process of its own, from a file that is not in the page cache.

    budget 0: nothing is played but a few splats; -1: no budget. `peak` is the most that its group
    held, caches of files included; where nothing counts that, the most that was resident.
    """
    forget_cached(path)
    argv = [sys.executable, str(CHILD), str(warm), str(path), str(budget), str(WIDTH), str(HEIGHT)]
    with Cage(cap) as cage:
        done = cage.run(argv)
    if done.returncode:
        raise RuntimeError("killed: over the cap" if done.killed else done.errors[-250:])
    found: dict[str, Any] = json.loads(done.output)
    return {**found, "peak": done.peak or found["resident"]}
