"""Tables 2 and 3 of "LLM in a flash", measured here: what each mechanism saves at half of the
model in memory.

    python benchmarks/flash_ablation.py [--quick] [--json FILE] [--check] [--no-peers]

OPT-6.7B's shape in F16 and Q8_0 with synthetic weights; active sets that replay the published
statistics; direct reads;
each row a child process under a memory cap of baseline + plan.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from penstock.loaders.bundle import Bundle, open_bundle
from penstock.loaders.probe import DeviceProfile, probe

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import ablation_report as report
from benchmarks import disk_offload, options
from benchmarks.ablation_child import Task
from benchmarks.ablation_rows import ROWS, SCRIPT_TOKENS, Row, row_plan
from benchmarks.active_sets import ActiveSets, Targets, generate
from benchmarks.capped import Cage, drop_caches
from benchmarks.machine import describe
from benchmarks.synthetic import SHAPES, write_bundle
from benchmarks.task_file import write_task

CHILD = Path(__file__).with_name("ablation_child.py")
SLOW_RATE = 1_000_000_000


class Ablation:
    """One shape in one number format."""

    def __init__(self, args: argparse.Namespace, dtype: str, console: Console) -> None:
        self.args, self.dtype, self.console = args, dtype, console
        self.shape = SHAPES["opt-quick" if args.quick else "opt-6.7b"]
        self.path = args.work / f"{self.shape.name}-{dtype}.penstock.gguf"
        self.kept = self.path.exists()
        if not self.kept:
            began = time.perf_counter()
            write_bundle(self.shape, dtype, self.path)
            size = self.path.stat().st_size / 1e9
            self.say(
                f"wrote {size:.2f} GB of synthetic weights in {time.perf_counter() - began:.0f} s"
            )

    def say(self, text: str) -> None:
        self.console.print(f"{self.dtype}: {text}", highlight=False, style="dim")

    def run(self, sets: ActiveSets) -> dict[str, Any]:
        """All rows, those of the bars twice in turn."""
        bundle = open_bundle(self.path)
        profile = probe(self.path, quick=self.args.quick)
        budget = int(bundle.file.size * self.args.memory)
        files = [self.args.work / f"active-{name}.npy" for name in ("ids", "offsets")]
        np.save(files[0], sets.ids)
        np.save(files[1], sets.offsets)
        task = Task(str(self.path), None, ROWS[0], str(files[0]), str(files[1]), None, SLOW_RATE)
        baseline = self._baseline(task)
        rows: dict[str, list[dict[str, Any]]] = {row.name: [] for row in ROWS}
        for turn in range(1 if self.args.quick else 2):
            for row in ROWS:
                if row.rounds > turn:
                    # Under the throttle once is enough: the throttle takes the storage's noise out.
                    once = row if turn == 0 else replace(row, slow_tokens=0)
                    planned = self._task(task, bundle, profile, once, sets, budget)
                    rows[row.name].append(self._row(planned, baseline))
        for file in files:
            file.unlink()
        return {
            "dtype": self.dtype,
            "shape": self.shape.name,
            "file_bytes": bundle.file.size,
            "ffn_bytes": bundle.ffn_bytes,
            "stride": bundle.stride,
            "budget": budget,
            "baseline": baseline,
            "rows": rows,
            "profile": profile,
        }

    def _task(
        self,
        task: Task,
        bundle: Bundle,
        profile: DeviceProfile,
        row: Row,
        sets: ActiveSets,
        budget: int,
    ) -> Task:
        if self.args.quick:
            row = replace(
                row,
                warm=min(row.warm, 8),
                tokens=min(row.tokens, 8),
                slow_tokens=min(row.slow_tokens, 2),
            )
        return replace(
            task, row=row, plan=row_plan(bundle, profile, row, sets, budget, self.args.threads)
        )

    def _baseline(self, task: Task) -> int:
        """Memory of the same child without an engine: interpreter, imports, the script."""
        with Cage() as cage:
            drop_caches()
            done = cage.run(self._command(task))
        if done.returncode:
            raise SystemExit(f"the baseline child failed:\n{done.errors}")
        return done.peak

    def _row(self, task: Task, baseline: int) -> dict[str, Any]:
        plan = task.plan
        assert plan is not None
        cap = baseline + plan.total
        drop_caches()
        began = time.perf_counter()
        with Cage(cap) as cage:
            group = cage.storage_group
            task = replace(task, storage_group=str(group) if group else None)
            done = cage.run(self._command(task))
        took = time.perf_counter() - began
        out: dict[str, Any] = {"name": task.row.name, "cap": cap, "planned": plan.total}
        out |= {"peak": done.peak, "cap_kind": cage.memory_kind, "killed": done.killed}
        out["window_rows"] = sum(x.rows if x.residency == "window" else 0 for x in plan.layers)
        if done.returncode:
            why = "killed: over the cap" if done.killed else done.errors
            self.say(f"{task.row.name}: FAILED, {why}")
            return out
        out |= json.loads(done.output)
        total = np.median(out["full"]["total_ns"]) / 1e6
        self.say(f"{task.row.name}: {total:,.0f} ms a token, {took:.0f} s in all")
        return out

    def _command(self, task: Task) -> list[str]:
        file = self.args.work / "task.json"
        write_task(file, task)
        return [sys.executable, str(CHILD), str(file)]

    def clean(self) -> None:
        (self.args.work / "task.json").unlink(missing_ok=True)
        if not self.kept and not self.args.keep:
            self.path.unlink(missing_ok=True)


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--no-peers", action="store_true", help="leave transformers' offload out")
    parser.add_argument("--types", nargs="+", default=["F16", "Q8_0"], choices=["F16", "Q8_0"])
    parser.add_argument(
        "--memory", type=float, default=0.5, help="share of the model's file in memory"
    )
    args = options.parse(parser)
    console = Console(width=None if sys.stdout.isatty() else 160)

    began = time.perf_counter()
    peers = not (args.quick or args.no_peers)
    head = describe(["transformers", "accelerate"] if peers else [])
    shape = SHAPES["opt-quick" if args.quick else "opt-6.7b"]
    sets = generate(shape.layers, shape.neurons, SCRIPT_TOKENS)
    results, missed = [], []
    for dtype in args.types:
        ablation = Ablation(args, dtype, console)
        try:
            result = ablation.run(sets)
            if peers and dtype == "F16":
                result["peer"] = disk_offload.measure(shape, args.work, args.memory, args.keep)
        finally:
            ablation.clean()
        results.append(result)
    for line in head:
        console.print(line, highlight=False)
    report.print_sets(console, sets, Targets())
    for result in results:
        report.print_result(console, result, SLOW_RATE)
        missed += report.missed_bars(result)
    console.print(f"whole run: {time.perf_counter() - began:.0f} s", highlight=False)
    if args.json:
        args.json.write_text(json.dumps(report.plain(head, sets, results, missed), indent=1))
    if args.check and not args.quick:
        for bar in missed:
            console.print(f"MISSED: {bar}", highlight=False)
        if missed:
            sys.exit(1)
        console.print("every bar is met", highlight=False)


if __name__ == "__main__":
    main()
