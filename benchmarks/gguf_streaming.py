"""Ordinary GGUF files larger than memory: Penstock's engine beside plain llama.cpp.

    python benchmarks/gguf_streaming.py [--quick] [--json FILE] [--check] [--plot FILE]

Synthetic weights (zero mean, so that routing does not collapse): a dense 3B in Q8_0 and a mixture
of experts of OLMoE-1B-7B's shape in Q4_0, whose routing is uniform (the worst case) or reuses
experts from token to token. Each contender is a child process under the same memory cap, a share
of the file's size, everything included; caches are dropped before each, turns are taken, medians
reported, ratios paired by turn. The dense file is also streamed through fresh pages, usual and
huge, instead of the ring. Routers are recorded, and policies compared on them with Belady's best.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from penstock import _native
from penstock.loaders.expert_trace import read_trace
from penstock.loaders.probe import probe
from penstock.runtime.gguf.replay import replay

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import options
from benchmarks.capped import Cage, drop_caches
from benchmarks.gguf_cases import CASES, FITS, Case
from benchmarks.gguf_child import OURS, GgufTask
from benchmarks.gguf_report import missed_bars, plot, policy_table, print_table, storage_line
from benchmarks.machine import describe
from benchmarks.synthetic_gguf import write_gguf
from benchmarks.task_file import write_task

CHILD = Path(__file__).with_name("gguf_child.py")
RECORDED = 200  # tokens, for the comparison of policies


class Bench:
    """One file."""

    def __init__(self, args: argparse.Namespace, case: Case, console: Console) -> None:
        self.args, self.case, self.console = args, case, console
        shape = case.quick if args.quick else case.shape
        name = f"{shape.name}{'' if shape.reuse is None else f'-reuse{shape.reuse}'}.gguf"
        self.path = args.work / name
        self.vocab = min(2000, shape.vocab)
        self.kept = self.path.exists()
        if not self.kept:
            write_gguf(shape, self.path)
        self.size = self.path.stat().st_size

    def child(
        self, contender: str, cap: float, baseline: int, trace: str = "", tokens: int = 0
    ) -> dict[str, Any]:
        """Run one contender under a cap; {'failed': why} when it did not come through."""
        limit = int(self.size * cap)
        if self.args.quick:
            limit += baseline + (64 << 20)
        slow = contender not in OURS and cap < 1
        task = GgufTask(
            contender=contender,
            model=str(self.path),
            memory=limit - baseline,
            threads=self.args.threads,
            context=512,
            prompt=32,
            warm=3 if slow else 8,
            tokens=tokens or (3 if self.args.quick else (4 if slow else 16)),
            seed=1,
            vocab=self.vocab,
            trace=trace,
        )
        file = self.args.work / "gguf-task.json"
        write_task(file, task)
        drop_caches()
        with Cage(limit) as cage:
            done = cage.run([sys.executable, str(CHILD), str(file)])
        if done.returncode:
            why = "killed: over the cap" if done.killed else done.errors.strip()[-200:]
            return {"failed": why, "peak": done.peak}
        return {**json.loads(done.output or "{}"), "peak": done.peak, "limit": limit}

    def baseline(self) -> int:
        """Memory of a child that imports everything and runs nothing."""
        file = self.args.work / "gguf-task.json"
        write_task(file, GgufTask("nothing", "", 0, 1, 0, 0, 0, 0, 0, 0))
        with Cage() as cage:
            done = cage.run([sys.executable, str(CHILD), str(file)])
        if done.returncode:
            raise SystemExit(f"the baseline child failed:\n{done.errors}")
        return done.peak

    def run(self) -> dict[str, Any]:
        profile = probe(self.path, quick=self.args.quick)
        baseline = self.baseline()
        rows: list[dict[str, Any]] = []
        quick = self.args.quick
        for cap in [self.case.middle, FITS] if quick else [*self.case.bars, FITS]:
            names = ["penstock", "default"] if cap == FITS else ["penstock", "mmap"]
            if cap == self.case.middle and not self.case.experts:
                names += ["fresh", "huge"]
            results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for turn in range(1 if quick else self.args.rounds):
                for name in names if turn % 2 == 0 else names[::-1]:
                    results[name].append(self.child(name, cap, baseline))
            if cap == self.case.middle and not quick:
                for name in ("direct", "mlock"):
                    results[name] = [self.child(name, cap, baseline)]
            for name, runs in results.items():
                rows.append({"cap": cap, "contender": name, **_median(runs)})
                self._say(rows[-1])
        out: dict[str, Any] = {
            "case": self.case.name, "size": self.size, "baseline": baseline, "rows": rows,
            "raw": profile.sequential_bytes_per_second, "raw_busy": _busy_storage(self.path),
            "policies": self._policies(baseline) if self.case.experts else None,
        }  # fmt: skip
        if not self.kept and not self.args.keep:
            self.path.unlink()
        return out

    def _policies(self, baseline: int) -> dict[str, Any]:
        """What each policy would have kept of a recorded run, at the middle cap's window."""
        file = self.args.work / "routers.trace"
        tokens = 12 if self.args.quick else RECORDED
        row = self.child("penstock", self.case.middle, baseline, str(file), tokens)
        if "failed" in row:
            return {"failed": row["failed"]}
        made = replay(read_trace(file), [max(0.01, row["window_share"])])[0]
        file.unlink()
        return {"cap": self.case.middle, **made.to_dict()}

    def _say(self, row: dict[str, Any]) -> None:
        told = row.get("failed") or f"{row['rate']:.2f} tokens/s"
        self.console.print(
            f"{self.case.name} at {row['cap']:.0%}, {row['contender']}: {told}",
            style="dim", highlight=False,
        )  # fmt: skip


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The middle run, and the rates of all turns; a turn that failed has rate 0."""
    good = [r for r in runs if "failed" not in r]
    if not good:
        return {"failed": runs[0]["failed"]}
    good.sort(key=lambda r: statistics.median(r["seconds"]))
    rates = [0.0 if "failed" in r else 1.0 / statistics.median(r["seconds"]) for r in runs]
    return {**good[len(good) // 2], "rate": statistics.median(rates), "rates": rates}


def _busy_storage(path: Path) -> float:
    """Bytes a second in order while every core reads memory, as they do when llama.cpp computes."""
    cores = os.cpu_count() or 1
    reader = threading.Thread(target=_native.measure_memory, args=(cores, 256 << 20, 60))
    reader.start()
    time.sleep(0.1)
    rate, _ = _native.measure_reads(str(path), 2 << 20, 16, "auto", 0.7, True)
    alive = reader.is_alive()
    reader.join()
    return float(rate) if alive else 0.0


def main() -> None:
    made = options.parser(__doc__)
    made.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    made.add_argument("--cases", nargs="+", type=int, default=list(range(len(CASES))))
    made.add_argument("--plot", type=Path, help="draw tokens per second over the cap, as SVG")
    made.add_argument(
        "--traces", nargs="+", type=Path, default=[], help="recorded routers to replay as well"
    )
    args = options.parse(made)
    console = Console(width=None if sys.stdout.isatty() else 170)
    head = describe(["llama-cpp-python"])
    cases = [CASES[i] for i in args.cases]
    results = [Bench(args, case, console).run() for case in cases]
    traces = [
        {"case": t.model, **r.to_dict()} for t in map(read_trace, args.traces) for r in replay(t)
    ]
    for line in head:
        console.print(line, highlight=False)
    for result in results:
        print_table(console, result)
        console.print(storage_line(result), highlight=False)
    console.print(policy_table(results, traces))
    missed = missed_bars(cases, results, traces)
    if args.json:
        document = {"head": head, "results": results, "traces": traces, "missed": missed}
        args.json.write_text(json.dumps(document))
    if args.plot:
        plot(results, head[0], args.plot)
    if args.check and not args.quick:
        for bar in missed:
            console.print(f"MISSED: {bar}", highlight=False)
        if missed:
            sys.exit(1)


if __name__ == "__main__":
    main()
