"""Tables and bars of the ablation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.active_sets import WINDOW_TOKENS, ActiveSets, Targets
from benchmarks.machine import storage_lines

NAIVE, HYBRID, BUNDLING, ALL = "naive", "hybrid", "+ bundling", "+ overlap (all)"
STORAGE_BAR, HYBRID_BAR, NAIVE_BAR, RAW_BAR = 12.0, 5.0, 9.0, 0.80

Run = dict[str, Any]


def per_token(run: Run, counter: str, phase: str = "full") -> float:
    """Median over the tokens, in milliseconds or plain."""
    return float(np.median(run[phase][counter])) * (1e-6 if counter.endswith("_ns") else 1.0)


def ratio(result: Run, counter: str, over: str, under: str, phase: str = "full") -> float:
    """Median of the paired ratios of two rows, one pair a round; NaN where a row failed."""
    rows = result["rows"]
    pairs = zip(rows.get(over, []), rows.get(under, []), strict=False)
    ratios = [
        per_token(a, counter, phase) / max(per_token(b, counter, phase), 1e-9)
        for a, b in pairs
        if phase in a and phase in b
    ]
    return float(np.median(ratios)) if ratios else float("nan")


def raw_share(result: Run) -> float:
    """Throughput of the scattered reads / of the probe at their mean size and depth."""
    runs = [r for r in result["rows"].get(BUNDLING, []) if "full" in r]
    shares = [
        sum(r["full"]["io_bytes"]) / sum(r["full"]["io_busy_ns"]) * 1e9 / r["raw"] for r in runs
    ]
    return float(np.median(shares)) if shares else float("nan")


def missed_bars(result: Run) -> list[str]:
    """The bars that this result misses; a ratio that could not be measured misses its bar."""
    name = result["dtype"]
    bars = [
        ("storage time, hybrid / all", ratio(result, "io_busy_ns", HYBRID, ALL), STORAGE_BAR),
        ("latency, naive / all", ratio(result, "total_ns", NAIVE, ALL), NAIVE_BAR),
        ("sparse reads / raw throughput", raw_share(result), RAW_BAR),
    ]
    if name == "F16":
        bars.append(("latency, hybrid / all", ratio(result, "total_ns", HYBRID, ALL), HYBRID_BAR))
    missed = [
        f"{name} {what}: {value:.2f}, must be at least {least}"
        for what, value, least in bars
        if not value >= least
    ]
    failed = [row for row, runs in result["rows"].items() if any("full" not in r for r in runs)]
    return missed + [f"{name} row '{row}' did not finish under its cap" for row in failed]


def print_sets(console: Console, sets: ActiveSets, targets: Targets) -> None:
    """Achieved against published statistics."""
    m = sets.measured
    console.print(
        "synthetic weights; active sets from a generator fitted to the published OPT-6.7B "
        "figures, achieved "
        f"(published): truly active {m.active:.2%} ({targets.active:.2%}), predicted "
        f"{m.predicted:.1%} (about three "
        f"times that), new per token with k = {WINDOW_TOKENS} {m.fresh:.2%} "
        f"({targets.fresh:.2%}), window "
        f"{m.window:.1%} ({targets.window:.0%}); no co-activation of neighbours is modelled",
        highlight=False,
    )


def print_result(console: Console, result: Run, slow_rate: int) -> None:
    """The table, the same under the throttle, and the ratios."""
    size = result["file_bytes"] / 1e9
    cap = next(iter(result["rows"].values()))[0]["cap_kind"]
    console.rule(f"{result['shape']} {result['dtype']}, {size:.2f} GB")
    for line in storage_lines(result["profile"]):
        console.print(line, highlight=False)
    console.print(
        f"memory: {result['budget'] / 1e9:.2f} GB ({result['budget'] / result['file_bytes']:.1%} "
        f"of the file); each row a "
        f"child under a hard cap ({cap}) of baseline {result['baseline'] / 1e6:.0f} MB + its "
        f"plan; reads are direct, nothing "
        f"is cached; bundles of {result['stride']} bytes",
        highlight=False,
    )
    console.print(_table(result, "full", f"{result['dtype']}, storage as it is"))
    if any("slow" in r for runs in result["rows"].values() for r in runs):
        console.print(
            _table(
                result,
                "slow",
                f"{result['dtype']}, storage held to {slow_rate / 1e9:g} GB/s (cgroup)",
            )
        )
    else:
        console.print(
            "no storage throttle is possible here: the second table is left out", highlight=False
        )
    peer = result.get("peer")
    if peer:
        console.print(
            f"transformers + accelerate, same shape, same cap: {peer['line']}", highlight=False
        )
    for line in _ratio_lines(result):
        console.print(line, highlight=False)


def _table(result: Run, phase: str, title: str) -> Table:
    table = Table(title=title)
    table.add_column("")
    heads = (
        "DRAM GB",
        "peak GB",
        "MB/token",
        "storage ms",
        "waited ms",
        "GB/s",
        "upkeep ms",
        "compute ms",
    )
    for name in (*heads, "total ms", "vs hybrid", "vs naive"):
        table.add_column(name, justify="right")
    for name, runs in result["rows"].items():
        done = [r for r in runs if phase in r]
        if not done:
            table.add_row(name, "killed" if runs and runs[0]["killed"] else "failed")
            continue
        total, wait, upkeep, busy, size = (
            float(np.median([per_token(r, c, phase) for r in done]))
            for c in ("total_ns", "wait_ns", "upkeep_ns", "io_busy_ns", "io_bytes")
        )
        values = [
            f"{done[0]['planned'] / 1e9:.2f}",
            f"{done[0]['peak'] / 1e9:.2f}",
            f"{size / 1e6:,.0f}",
        ]
        values += [
            f"{busy:,.0f}",
            f"{wait:,.0f}",
            f"{size / max(busy, 1e-9) / 1e6:.2f}",
            f"{upkeep:.1f}",
        ]
        values += [f"{total - wait - upkeep:,.0f}", f"{total:,.0f}"]
        values += [
            f"{ratio(result, 'total_ns', base, name, phase):.1f}x" for base in (HYBRID, NAIVE)
        ]
        table.add_row(name, *values)
    if phase == "full" and result.get("peer", {}).get("extrapolated_seconds"):
        table.add_row(*_peer_row(result))
    return table


def _peer_row(result: Run) -> list[str]:
    """The peer beside our rows: its whole latency is extrapolated from a part of the layers."""
    total = result["peer"]["extrapolated_seconds"] * 1e3
    versus = []
    for base in (HYBRID, NAIVE):
        runs = [per_token(r, "total_ns") for r in result["rows"].get(base, []) if "full" in r]
        versus.append(f"{np.median(runs) / total:.1f}x" if runs else "")
    return ["disk offload, extrapolated", *[""] * 8, f"{total:,.0f}", *versus]


def _ratio_lines(result: Run) -> list[str]:
    lines = [
        f"storage time: hybrid / all {ratio(result, 'io_busy_ns', HYBRID, ALL):.1f}x (bar "
        f"{STORAGE_BAR:g}), "
        f"naive / all {ratio(result, 'io_busy_ns', NAIVE, ALL):.1f}x",
        f"latency: hybrid / all {ratio(result, 'total_ns', HYBRID, ALL):.1f}x (bar "
        f"{HYBRID_BAR:g} for F16), "
        f"naive / all {ratio(result, 'total_ns', NAIVE, ALL):.1f}x (bar {NAIVE_BAR:g})",
    ]
    runs = [r for r in result["rows"].get(BUNDLING, []) if "full" in r]
    if runs:
        run = runs[0]
        reads, size, n = sum(run["full"]["io_reads"]), sum(run["full"]["io_bytes"]), run["neurons"]
        lines.append(
            f"sparse reads: {size / sum(run['full']['io_busy_ns']):.2f} GB/s at a mean of "
            f"{size / max(reads, 1) / 1024:.1f} KiB "
            f"after merging, {raw_share(result):.0%} of {run['raw'] / 1e9:.2f} GB/s that the "
            f"probe's random reads of that "
            f"size reach at that depth (bar {RAW_BAR:.0%})"
        )
        missing = n["misses"] + n["overflow"]
        lines.append(
            f"window: {run['window_rows'] * result['stride'] / result['ffn_bytes']:.1%} of the "
            f"FFN; of the neurons computed "
            f"{n['active'] / max(n['predicted'], 1):.0%} were active, "
            f"{missing / max(n['hits'] + missing, 1):.0%} had to be read"
        )
    return lines


def plain(head: list[str], sets: ActiveSets, results: list[Run], missed: list[str]) -> Run:
    """Everything, for --json."""
    for result in results:
        result["profile"] = asdict(result["profile"])
    return {
        "head": head,
        "active_sets": asdict(sets.measured),
        "results": results,
        "missed": missed,
    }
