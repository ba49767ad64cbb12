"""What a simulated federation costs for each device: 10, 100 and 1,000 devices on this machine.

    python benchmarks/federated_simulation.py [--quick] [--json FILE] [--check]

Each row is a process of its own: real training of a small network (43-64-32-6, HeteroFL at two
widths, 20 windows a device, 4 steps) on Flower's Ray engine, every device in every round. Beside
it, the same devices and rounds under Flower's `run_simulation`. The windows are synthetic. A round
is timed from the end of the one before, so it holds everything: messages, training, checks,
aggregation, checkpoint and journal. The first round also loads torch in the actors; the table's
"a round" is the median of the later ones.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import options
from benchmarks.machine import describe

CHILD = Path(__file__).resolve().with_name("federated_simulation_child.py")
SIZES, ROUNDS = (10, 100, 1000), 4
QUICK_SIZES, QUICK_ROUNDS = (4, 20), 2
MOST_GROWTH = 1.25  # of the cost of a device from 100 to 1,000 devices, where linear is 1
LIMIT_S = 1800
TRIES = 3  # Ray gives up starting after 30 s where other work has the cores


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=("ours", "stock"), default=("ours", "stock"), help="these"
    )
    args = options.parse(parser)
    sizes, rounds = (QUICK_SIZES, QUICK_ROUNDS) if args.quick else (SIZES, ROUNDS)
    console = Console(width=None if sys.stdout.isatty() else 130)
    head = describe(["flwr", "ray", "torch"])
    for line in head:
        console.print(line, highlight=False)
    rows = []
    for kind in args.only:
        for size in sizes:
            rows.append(_measure(kind, size, rounds))
            print(f"{kind}, {size} devices: {rows[-1]['whole_s']:.1f} s", file=sys.stderr)
    console.print(_table(rows))
    if args.json:
        args.json.write_text(json.dumps({"head": head, "rows": rows}, indent=1))
    missed = _missed(rows)
    if args.check and not args.quick:
        for bar in missed:
            console.print(f"MISSED: {bar}", highlight=False)
        if missed:
            sys.exit(1)
        console.print("every bar is met", highlight=False)


def _measure(kind: str, devices: int, rounds: int) -> dict[str, Any]:
    for left in reversed(range(TRIES)):
        with tempfile.TemporaryDirectory(prefix="bench-simulation-") as folder:
            done = subprocess.run(
                [sys.executable, str(CHILD), kind, str(devices), str(rounds), folder],
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
        if not done.returncode:
            break
        print(f"{kind} with {devices} devices failed; tries left: {left}", file=sys.stderr)
    else:
        sys.exit(f"{kind} with {devices} devices failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    found["round_s"] = statistics.median(found["rounds_s"][1:])
    found["ms_a_device"] = 1000 * found["round_s"] / devices
    return found


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="a simulated federation, every device in every round", title_justify="left")
    for name in ("engine", "devices", "start s", "first round s", "a round s", "ms a device",
                 "of it training", "server s", "peak MiB", "processes", "accuracy"):  # fmt: skip
        table.add_column(name, justify="left" if name == "engine" else "right")
    names = {"ours": "penstock", "stock": "run_simulation"}
    for row in rows:
        training = 1000 * statistics.median(row["device_s"][1:]) / row["devices"]
        table.add_row(
            names[row["kind"]],
            f"{row['devices']:,}",
            f"{row['start_s']:.1f}",
            f"{row['rounds_s'][0]:.1f}",
            f"{row['round_s']:.2f}",
            f"{row['ms_a_device']:.1f}",
            f"{training:.1f}",
            f"{statistics.median(row['server_s'][1:]):.2f}",
            f"{row['peak_bytes'] / 2**20:,.0f}",
            str(row["processes"]),
            f"{100 * row['accuracy']:.1f} %" if row["accuracy"] >= 0 else "-",
        )
    return table


def _missed(rows: list[dict[str, Any]]) -> list[str]:
    ours = {row["devices"]: row for row in rows if row["kind"] == "ours"}
    missed = [
        f"{size} devices: {min(row['counted'])} updates were counted in a round"
        for size, row in ours.items()
        if min(row["counted"]) < size
    ]
    if 100 in ours and 1000 in ours:
        growth = ours[1000]["ms_a_device"] / ours[100]["ms_a_device"]
        if growth > MOST_GROWTH:
            missed.append(
                f"a device costs {growth:.2f} times as much among 1,000 as among 100, the bar is "
                f"{MOST_GROWTH}"
            )
    return missed


if __name__ == "__main__":
    main()
