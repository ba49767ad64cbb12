"""The daemon and the server as real processes: footprint, empty rounds, faults, beside Flower's.

    python benchmarks/federated_daemon.py [--quick] [--json FILE] [--check]
        [--only footprint client server network disk corrupt] [--no-stock]

Needs Linux; the network cut and the full disk need root (network namespaces, mounts), and are left
out with a word where they are not allowed. --quick takes the footprint only, with few rounds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import federated_daemon_footprint as footprint
from benchmarks import options
from benchmarks.federated_daemon_faults import FAULTS, STOCK, Fault
from benchmarks.machine import describe

PARTS = ("footprint", *FAULTS)
HALF = 0.5  # of stock Flower's: idle memory, and seconds of an empty round


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument("--no-stock", action="store_true", help="do not measure stock Flower")
    args = options.parse(parser)
    console = Console(width=None if sys.stdout.isatty() else 150)
    head = describe(["flwr", "torch"])
    for line in head:
        console.print(line, highlight=False)
    found: dict[str, Any] = {"head": head}
    missed: list[str] = []
    parts = ["footprint"] if args.quick else list(args.only)
    if "footprint" in parts:
        rows = _footprints(3 if args.quick else 10, not args.no_stock)
        console.print(_footprint_table(rows))
        found["footprint"] = [asdict(row) for row in rows]
        missed += _footprint_bars(rows)
    faults = []
    for name in [part for part in parts if part in FAULTS]:
        fault = _fault(name, not args.no_stock)
        faults.append(fault)
        missed += [f"{fault.name}: {text}" for text in fault.missed]
        console.print(f"{fault.name}: {fault.ours}", highlight=False)
    if faults:
        console.print(_fault_table(faults))
        found["faults"] = [asdict(fault) for fault in faults]
    if args.json:
        args.json.write_text(json.dumps(found | {"missed": missed}, indent=1))
    if args.check and not args.quick:
        for bar in missed:
            console.print(f"MISSED: {bar}", highlight=False)
        if missed:
            sys.exit(1)
        console.print("every bar is met", highlight=False)


def _footprints(rounds: int, stock: bool) -> list[footprint.Footprint]:
    rows = []
    for measure in [footprint.ours, *([footprint.stock] if stock else [])]:
        with tempfile.TemporaryDirectory(prefix="penstock-daemon-") as folder:
            rows.append(measure(Path(folder), rounds))
    return rows


def _footprint_table(rows: list[footprint.Footprint]) -> Table:
    table = Table(title="processes of one device of three, and a round that trains next to nothing")
    for name in ("", "idle RSS", "idle PSS", "training RSS", "training PSS", "empty round"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        sizes = (row.idle_rss, row.idle_pss, row.training_rss, row.training_pss)
        table.add_row(
            row.who,
            *(f"{size / 1e6:.0f} MB" for size in sizes),
            f"{row.round_s:.2f} s",
        )
    return table


def _footprint_bars(rows: list[footprint.Footprint]) -> list[str]:
    if len(rows) < 2:
        return []
    mine, theirs = rows
    missed = []
    for name, ours, stock in (
        ("idle PSS", mine.idle_pss / 1e6, theirs.idle_pss / 1e6),
        ("seconds of an empty round", mine.round_s, theirs.round_s),
    ):
        if ours > HALF * stock:
            missed.append(f"{name}: {ours:.3g}, stock Flower {stock:.3g}; aimed for half")
    return missed


def _fault(name: str, stock: bool) -> Fault:
    with tempfile.TemporaryDirectory(prefix="penstock-fault-") as folder:
        try:
            fault = FAULTS[name](Path(folder) / "ours")
        except RuntimeError as error:
            lines = str(error).splitlines()
            return Fault(name, f"not shown: {lines[0]}", "", [str(error)])
        told = "not tried"
        if stock and name in STOCK:
            (Path(folder) / "stock").mkdir()
            try:
                told = STOCK[name](Path(folder) / "stock")
            except RuntimeError as error:
                told = f"{error}"
        return Fault(fault.name, fault.ours, told, fault.missed, fault.figures)


def _fault_table(faults: list[Fault]) -> Table:
    table = Table(title="faults, with three devices of three widths")
    for name in ("fault", "penstock", "stock Flower", "checks"):
        table.add_column(name, overflow="fold")
    for fault in faults:
        table.add_row(fault.name, fault.ours, fault.stock, "; ".join(fault.missed)[:300] or "hold")
    return table


if __name__ == "__main__":
    main()
