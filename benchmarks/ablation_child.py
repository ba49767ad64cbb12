"""One row of the ablation, in a process of its own: decodes, and prints what it measured."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.loaders.bundle import open_bundle
from penstock.runtime.budget import peak_memory
from penstock.runtime.flash_engine import FlashEngine
from penstock.runtime.plan import Plan

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.ablation_rows import Row
from benchmarks.capped import throttle
from benchmarks.task_file import read_task

PHASES = ("full", "slow")
COUNTERS = ("total_ns", "wait_ns", "upkeep_ns", "predict_ns", "io_busy_ns", "io_bytes", "io_reads")


@dataclass(frozen=True)
class Task:
    """What the parent asks of the child. plan None: only everything around it, for the baseline."""

    bundle: str
    plan: Plan | None
    row: Row
    ids: str  # .npy
    offsets: str
    storage_group: str | None
    slow_rate: int


def run(task: Task) -> dict[str, object]:
    bundle = open_bundle(task.bundle)
    ids, offsets = np.load(task.ids), np.load(task.offsets)
    if task.plan is None:  # the script's copy inside the decoder, and the measurement's buffers
        kept = ids.copy(), offsets.copy()
        _native.measure_reads(bundle.path, 64 << 10, 64, "threads", 0.05, False)
        return {"baseline": len(kept)}
    began = perf_counter()
    row = task.row
    engine = FlashEngine(
        bundle, task.plan, overlap=row.overlap, bundled=row.bundled, reuse=row.reuse
    )
    if row.kind == "window":
        engine.decoder.script(ids, offsets)
    loaded = perf_counter() - began
    logits = np.empty((1, engine.vocab), np.float32)
    _decode(engine, row.warm, logits)
    engine.decoder.reset_stats()
    out: dict[str, object] = {"load_s": loaded, "backend": engine.decoder.backend}
    out["full"] = _decode(engine, row.tokens, logits)
    out.update(_sparsity(engine, bundle.layers))
    out["raw"] = _raw_rate(task, out)
    if row.slow_tokens and throttle(task.storage_group, bundle.path, task.slow_rate):
        out["slow"] = _decode(engine, row.slow_tokens, logits)
        throttle(task.storage_group, bundle.path, 0)
    out["memory_bytes"] = engine.decoder.memory_bytes
    out["peak_bytes"] = peak_memory()
    out["finite"] = bool(np.isfinite(logits).all())
    return out


def _decode(
    engine: FlashEngine, tokens: int, logits: NDArray[np.float32]
) -> dict[str, list[float]]:
    """Decode; each counter's growth token by token."""
    out: dict[str, list[float]] = {name: [] for name in COUNTERS}
    for _ in range(tokens):
        before = engine.decoder.stats()
        token = np.array([1 + engine.length % 1000], np.int32)
        engine.decode_into(token, engine.length, logits)
        after = engine.decoder.stats()
        for name in COUNTERS:
            out[name].append(getattr(after, name) - getattr(before, name))
    return out


def _sparsity(engine: FlashEngine, layers: int) -> dict[str, object]:
    stats = [engine.decoder.ffn_stats(n) for n in range(layers)]
    total = {
        k: sum(getattr(s, k) for s in stats)
        for k in ("hits", "misses", "overflow", "predicted", "active")
    }
    return {"neurons": total}


def _raw_rate(task: Task, out: dict[str, object]) -> float:
    """Random reads of this row's mean size, at its depth: what the storage gives a plain probe."""
    plan, full = task.plan, out["full"]
    if plan is None or not isinstance(full, dict) or task.row.kind != "window":
        return 0.0
    reads = sum(full["io_reads"])
    if not reads:
        return 0.0
    block = max(512, round(sum(full["io_bytes"]) / reads / 512) * 512)
    rate, _ = _native.measure_reads(task.bundle, block, plan.depth, plan.backend, 1.0, False)
    return rate


def main() -> None:
    task = read_task(Path(sys.argv[1]), Task)
    print(json.dumps(run(task)))


if __name__ == "__main__":
    main()
