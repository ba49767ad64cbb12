"""Ordinary GGUF files larger than memory: Penstock's engine beside plain llama.cpp.

    python benchmarks/gguf_streaming.py [--quick] [--json FILE] [--check]

Synthetic weights (zero mean, so that routing does not collapse): a dense 3B in Q8_0 and a mixture
of experts of OLMoE-1B-7B's shape in Q4_0, whose routing is uniform (the worst case) or reuses
experts from token to token. Each contender is a child process under the same memory cap, a share of
the file's size, everything included; caches are dropped before each, turns are taken, medians
reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from penstock.loaders.probe import DeviceProfile, probe

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import options
from benchmarks.capped import Cage, drop_caches
from benchmarks.gguf_child import GgufTask
from benchmarks.gguf_shapes import SHAPES
from benchmarks.machine import describe
from benchmarks.synthetic_gguf import write_gguf
from benchmarks.task_file import write_task

CHILD = Path(__file__).with_name("gguf_child.py")
FITS = 2.0  # of the file's size: everything fits


@dataclass(frozen=True)
class Case:
    """A file and what it is measured at.

    Attributes:
        bars: cap -> least ratio to mmap.
        peers: contenders besides ours and mmap at the middle cap.
    """

    name: str
    shape: str
    reuse: float | None
    bars: dict[float, float | None]
    quick: str


MOE_BARS = {0.75: None, 0.55: 5.0, 0.4: None}
CASES = (
    Case("dense 3B, Q8_0", "llama-3b", None, {0.85: 2.5, 0.75: 2.0, 0.6: 1.6}, "tiny-llama"),
    Case("MoE 7B, Q4_0, uniform", "olmoe-7b", None, MOE_BARS, "tiny-olmoe"),
    Case("MoE 7B, Q4_0, reuse 0.4", "olmoe-7b", 0.4, MOE_BARS, "tiny-olmoe"),
)  # fmt: skip
STREAMING_SHARE = 0.85  # of raw sequential throughput, where storage is the bottleneck
RESIDENT_SHARE = 0.97  # of llama.cpp, when everything fits


class Bench:
    """One file."""

    def __init__(self, args: argparse.Namespace, case: Case, console: Console) -> None:
        self.args, self.case, self.console = args, case, console
        shape = SHAPES[case.quick if args.quick else case.shape]
        if case.reuse is not None:
            shape = replace(shape, reuse=case.reuse)
        name = f"{shape.name}{'' if case.reuse is None else f'-reuse{case.reuse}'}.gguf"
        self.path = args.work / name
        self.kept = self.path.exists()
        if not self.kept:
            write_gguf(shape, self.path)
        self.size = self.path.stat().st_size

    def child(self, contender: str, cap: float, baseline: int) -> dict[str, Any]:
        """Run one contender under a cap; {'failed': why} when it did not come through."""
        limit = int(self.size * cap)
        if self.args.quick:
            limit += baseline + (64 << 20)
        slow = contender != "penstock" and cap < 1
        task = GgufTask(
            contender=contender,
            model=str(self.path),
            memory=limit - baseline,
            threads=self.args.threads,
            context=512,
            prompt=32,
            warm=3 if slow else 8,
            tokens=3 if self.args.quick else (4 if slow else 16),
            seed=1,
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
        write_task(file, GgufTask("nothing", "", 0, 1, 0, 0, 0, 0, 0))
        with Cage() as cage:
            done = cage.run([sys.executable, str(CHILD), str(file)])
        if done.returncode:
            raise SystemExit(f"the baseline child failed:\n{done.errors}")
        return done.peak

    def run(self, profile: DeviceProfile) -> dict[str, Any]:
        baseline = self.baseline()
        rows: list[dict[str, Any]] = []
        caps = [*self.case.bars, FITS]
        for cap in caps:
            names = ["penstock", "default"] if cap == FITS else ["penstock", "mmap"]
            results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for _ in range(1 if self.args.quick else self.args.rounds):
                for name in names:
                    results[name].append(self.child(name, cap, baseline))
            if cap == sorted(self.case.bars)[1]:
                for name in ("direct", "mlock"):
                    results[name] = [self.child(name, cap, baseline)]
            for name, runs in results.items():
                rows.append({"cap": cap, "contender": name, **_median(runs)})
                self._say(rows[-1])
        if not self.kept and not self.args.keep:
            self.path.unlink()
        return {"case": self.case.name, "size": self.size, "baseline": baseline, "rows": rows}

    def _say(self, row: dict[str, Any]) -> None:
        told = row.get("failed") or f"{row['rate']:.2f} tokens/s"
        self.console.print(
            f"{self.case.name} at {row['cap']:.0%}, {row['contender']}: {told}",
            style="dim", highlight=False,
        )  # fmt: skip


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    good = [r for r in runs if "failed" not in r]
    if not good:
        return {"failed": runs[0]["failed"]}
    seconds = [statistics.median(r["seconds"]) for r in good]
    middle = good[sorted(range(len(good)), key=lambda i: seconds[i])[len(good) // 2]]
    return {
        **middle,
        "rate": 1.0 / statistics.median(seconds),
        "rates": [1.0 / s for s in seconds],
    }


def _table(result: dict[str, Any], profile: DeviceProfile) -> Table:
    table = Table(title=f"{result['case']}, {result['size'] / 1e9:.2f} GB")
    columns = ["cap", "contender", "tokens/s", "x mmap", "MB read/token", "hit rate"]
    for name in [*columns, "storage MB/s (of raw)", "waits", "prompt s", "load s", "peak MB"]:
        table.add_column(name, justify="left" if name == "contender" else "right")
    for row in result["rows"]:
        cap = "fits" if row["cap"] == FITS else f"{row['cap']:.0%}"
        if "failed" in row:
            table.add_row(cap, row["contender"], row["failed"][:40])
            continue
        ratio = row["rate"] / _rate(result, row["cap"], "mmap", "default")
        rate = row["streamed"] / row["busy_s"] if row.get("busy_s") else 0.0
        share = rate / profile.sequential_bytes_per_second
        total = sum(row["seconds"])
        table.add_row(
            cap, row["contender"], f"{row['rate']:.2f}", f"{ratio:.2f}",
            f"{row['read_bytes'] / 1e6:,.0f}",
            f"{1 - row['misses'] / row['used']:.1%}" if row.get("used") else "",
            f"{rate / 1e6:,.0f} ({share:.0%})" if rate else "",
            f"{row['wait_s'] / total:.0%}" if "wait_s" in row else "",
            f"{row['prompt_s']:.2f}", f"{row['load_s']:.1f}", f"{row['peak'] / 1e6:,.0f}",
        )  # fmt: skip
    return table


def _rate(result: dict[str, Any], cap: float, *names: str) -> float:
    for row in result["rows"]:
        if row["cap"] == cap and row["contender"] in names and "failed" not in row:
            return float(row["rate"])
    return float("nan")


def missed_bars(results: list[dict[str, Any]], profile: DeviceProfile) -> list[str]:
    """Every bar that was not met, named."""
    missed = []
    for case, result in zip(CASES, results, strict=True):
        for cap, bar in case.bars.items():
            ours, mmap = (_rate(result, cap, name) for name in ("penstock", "mmap"))
            if bar is not None and not ours / mmap >= bar:
                missed.append(f"{case.name} at {cap:.0%}: {ours / mmap:.2f} x mmap, bar {bar}")
        for row in result["rows"]:
            if row["contender"] != "penstock" or not row.get("busy_s"):
                continue
            bound = row["wait_s"] > 0.5 * sum(row["seconds"])
            share = row["streamed"] / row["busy_s"] / profile.sequential_bytes_per_second
            if bound and share < STREAMING_SHARE:
                missed.append(
                    f"{case.name} at {row['cap']:.0%}: storage at {share:.0%} of raw, "
                    f"bar {STREAMING_SHARE:.0%}"
                )
        fits = _rate(result, FITS, "penstock") / _rate(result, FITS, "default")
        if not fits >= RESIDENT_SHARE:
            missed.append(f"{case.name}, all in memory: {fits:.2f} of llama.cpp, bar 0.97")
    return missed


def main() -> None:
    made = options.parser(__doc__)
    made.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    made.add_argument("--cases", nargs="+", type=int, default=list(range(len(CASES))))
    args = options.parse(made)
    console = Console(width=None if sys.stdout.isatty() else 160)
    head = describe(["llama-cpp-python"])
    results, missed = [], []
    cases = [CASES[i] for i in args.cases]
    for case in cases:
        bench = Bench(args, case, console)
        profile = probe(bench.path, quick=args.quick)
        results.append(bench.run(profile))
    for line in head:
        console.print(line, highlight=False)
    raw = profile.sequential_bytes_per_second / 1e6
    console.print(f"storage reads {raw:,.0f} MB/s in order", highlight=False)
    for result in results:
        console.print(_table(result, profile))
    if len(cases) == len(CASES):
        missed = missed_bars(results, profile)
    if args.json:
        args.json.write_text(json.dumps({"head": head, "results": results, "missed": missed}))
    if args.check and not args.quick:
        for bar in missed:
            console.print(f"MISSED: {bar}", highlight=False)
        if missed:
            sys.exit(1)


if __name__ == "__main__":
    main()
