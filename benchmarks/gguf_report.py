"""The GGUF benchmark's tables, its plot, and the bars that were missed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gguf_cases import BEHIND_BELADY, FITS, RESIDENT_SHARE, STREAMING_SHARE, Case

Result = dict[str, Any]


def row_of(result: Result, cap: float, contender: str) -> dict[str, Any] | None:
    """A contender's row, None when it did not come through."""
    for row in result["rows"]:
        if row["cap"] == cap and row["contender"] == contender and "failed" not in row:
            return dict(row)
    return None


def ratio(result: Result, cap: float, ours: str, peer: str) -> float:
    """Median of the turns' ratios; infinite where the peer did not come through at all."""
    mine, other = row_of(result, cap, ours), row_of(result, cap, peer)
    if mine is None:
        return 0.0
    if other is None:
        return float("inf")
    pairs = [
        a / b if b else float("inf") for a, b in zip(mine["rates"], other["rates"], strict=False)
    ]
    return statistics.median(pairs)


def print_table(console: Console, result: Result) -> None:
    table = Table(title=f"{result['case']}, {result['size'] / 1e9:.2f} GB")
    columns = ["cap", "contender", "tokens/s", "x peer", "MB read/token", "hit rate"]
    for name in [*columns, "storage MB/s (of raw)", "waits", "prompt s", "load s", "peak MB"]:
        table.add_column(name, justify="left" if name == "contender" else "right")
    for row in result["rows"]:
        cap = "fits" if row["cap"] == FITS else f"{row['cap']:.0%}"
        if "failed" in row:
            table.add_row(cap, row["contender"], row["failed"][:40])
            continue
        peer = "default" if row["cap"] == FITS else "mmap"
        rate = row["streamed"] / row["busy_s"] if row.get("busy_s") else 0.0
        table.add_row(
            cap, row["contender"], f"{row['rate']:.2f}",
            f"{ratio(result, row['cap'], row['contender'], peer):.2f}",
            f"{row['read_bytes'] / 1e6:,.0f}",
            f"{1 - row['misses'] / row['used']:.1%}" if row.get("used") else "",
            f"{rate / 1e6:,.0f} ({rate / result['raw']:.0%})" if rate else "",
            f"{row['wait_s'] / sum(row['seconds']):.0%}" if "wait_s" in row else "",
            f"{row['prompt_s']:.2f}", f"{row['load_s']:.1f}", f"{row['peak'] / 1e6:,.0f}",
        )  # fmt: skip
    console.print(table)


def storage_line(result: Result) -> str:
    busy = result["raw_busy"]
    return (
        f"storage reads {result['raw'] / 1e6:,.0f} MB/s in order"
        + (f", {busy / 1e6:,.0f} MB/s while the cores read memory" if busy else "")
        + "; rates are bytes over the time with a read in flight"
    )


def policy_table(results: Sequence[Result], traces: Sequence[Result]) -> Table:
    """Hit rates of recorded runs."""
    found = [{"case": r["case"], **r["policies"]} for r in results if r.get("policies")]
    found = [f for f in [*found, *traces] if "failed" not in f]
    names = list(found[0]["hit_rates"]) if found else []
    table = Table(title="hit rates of recorded runs (points behind Belady)")
    for name in ("routers", "window", *names, "Belady"):
        table.add_column(name, justify="left" if name == "routers" else "right")
    for f in found:
        cells = [f"{f['hit_rates'][n]:.1%} ({f['points_behind_belady'][n]:.1f})" for n in names]
        table.add_row(f["case"], f"{f['share']:.0%}", *cells, f"{f['belady']:.1%}")
    return table


def missed_bars(
    cases: Sequence[Case], results: Sequence[Result], traces: Sequence[Result]
) -> list[str]:
    """Every bar that was not met, named."""
    missed = []
    for case, result in zip(cases, results, strict=True):
        for cap, bar in case.bars.items():
            found = ratio(result, cap, "penstock", "mmap")
            if bar is not None and not found >= bar:
                missed.append(f"{case.name} at {cap:.0%}: {found:.2f} x mmap, bar {bar}")
            row = row_of(result, cap, "penstock")
            if row is not None:
                missed += _storage_bars(case, cap, row, result["raw"])
        fits = ratio(result, FITS, "penstock", "default")
        if not fits >= RESIDENT_SHARE:
            missed.append(f"{case.name}, all in memory: {fits:.3f} of llama.cpp, bar 0.97")
    policies = [{"case": r["case"], **r["policies"]} for r in results if r.get("policies")]
    for f in [*policies, *traces]:
        if "failed" in f:
            missed.append(f"{f['case']}: no trace: {f['failed']}")
            continue
        behind = next(iter(f["points_behind_belady"].values()))  # the default is first
        if behind > BEHIND_BELADY:
            missed.append(
                f"{f['case']}, window {f['share']:.0%}: {behind:.1f} points behind Belady, bar 5"
            )
    return missed


def _storage_bars(case: Case, cap: float, row: dict[str, Any], raw: float) -> list[str]:
    missed = []
    total = sum(row["seconds"])
    if row.get("busy_s") and row["wait_s"] > 0.5 * total:  # storage is the bottleneck
        share = row["streamed"] / row["busy_s"] / raw
        if share < STREAMING_SHARE:
            missed.append(
                f"{case.name} at {cap:.0%}: storage at {share:.0%} of raw, "
                f"bar {STREAMING_SHARE:.0%}"
            )
    if row.get("mode") == "stream":
        read = row["streamed"] / len(row["seconds"])
        if read > row["most_bytes"]:
            missed.append(
                f"{case.name} at {cap:.0%}: {read / 1e6:,.0f} MB a token, "
                f"bar {row['most_bytes'] / 1e6:,.0f} (model - budget + one block)"
            )
    return missed


LINES = (("penstock", "penstock", "Penstock"), ("mmap", "default", "llama.cpp, mmap"))


def plot(results: Sequence[Result], machine: str, path: Path) -> None:
    """Tokens per second over the memory cap, ours and mmap, a panel a file."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "penstock", "font.size": 9})
    figure, axes = pyplot.subplots(1, len(results), figsize=(4 * len(results), 3.2), squeeze=False)
    for axis, result in zip(axes[0], results, strict=True):
        for name, peer, label in (
            ("penstock", "penstock", "Penstock"),
            ("mmap", "default", "llama.cpp, mmap"),
        ):
            points = []
            for row in result["rows"]:
                wanted = peer if row["cap"] == FITS else name
                if row["contender"] == wanted and "failed" not in row:
                    points.append((min(row["cap"], 1.1) * 100, row["rate"]))
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        axis.set_title(result["case"], fontsize=9)
        axis.set_xlabel("memory cap, % of the file (110: all fits)")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("tokens per second")
    axes[0][0].legend(frameon=False)
    figure.text(0.5, 0.015, machine, ha="center", fontsize=7)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, metadata={"Date": None})
