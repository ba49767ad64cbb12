"""FedMobile-style learning on WISDM by user, in chunks of time, beside published methods.

    python benchmarks/fedmobile.py --check          # three seeds, about ten minutes on two cores
    python benchmarks/fedmobile.py --quick          # one seed, few rounds, under a minute
    python benchmarks/fedmobile.py --scratch        # without a model from the factory
    python benchmarks/fedmobile.py --tuning         # validation windows of seeds 100 to 104

Needs ../shared/data/har/wisdm. Figures are means over seeds on windows that no row was trained or
tuned on; `fedmobile_data.py` says how the stream is made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.fedmobile_data import CHUNKS, DEVICES, LABELLED_SHARE, make_stream, read_wisdm
from benchmarks.fedmobile_rows import MODEL, ROWS, Outcome, Setting, factory_model, initial
from benchmarks.machine import describe
from penstock.federated.training.memory_budget import peak_resident_bytes
from penstock.federated.training.metrics import forgetting
from penstock.federated.training.trainer import Trainer

DATA = Path(__file__).resolve().parent.parent.parent / "shared/data/har/wisdm"
QUICK_ROWS = 5  # up to ours
SEEDS, TUNING_SEEDS, ROUNDS = (0, 1, 2), (100, 101, 102, 103, 104), 25
OURS, LABELLED = "FedMobile-style", "labelled-only FedAvg"
WHOLE, LABELLED_WHOLE = f"{OURS}, 5 exemplars", "labelled-only, 5 exemplars"
# The bar is for the whole method, whose last part is the exemplar buffer; what the other parts
# bring is said beside it, like with like.
LIKE_WITH_LIKE = ((OURS, LABELLED), (WHOLE, LABELLED_WHOLE))
LEAST_GAIN, MOST_FORGETTING = 3.0, 0.5  # points of macro-F1; of labelled-only's forgetting


def setting_for(args: argparse.Namespace, seed: int) -> Setting:
    """The stream and the first model of one seed."""
    stream = make_stream(*read_wisdm(args.data), seed)
    trainer = Trainer(MODEL, 1.0)
    start = initial(seed) if args.scratch else factory_model(stream, seed, trainer)
    held_out = stream.validation if args.tuning else stream.test
    return Setting(stream, start, args.rounds, seed, held_out, trainer)


def run_one(args: argparse.Namespace, row: str, seed: int) -> Outcome:
    """In a process of its own."""
    import torch

    torch.set_num_threads(1)
    return ROWS[row](setting_for(args, seed))


def learned(scores: Sequence[Sequence[float]], scratch: bool) -> float:
    """Mean over the ends of chunks 1 to 4 of the mean over all chunks seen so far; chunk 0 counts
    as seen where a model came from the factory."""
    first = 1 if scratch else 0
    return float(np.mean([np.mean(row[first : end + 1]) for end, row in enumerate(scores) if end]))


def forgotten(scores: Sequence[Sequence[float]], scratch: bool) -> float:
    """Best past minus now, mean over the chunks before the last."""
    first = 1 if scratch else 0
    return forgetting([row[first:] for row in scores[first:]])


def figures(args: argparse.Namespace, outcomes: list[Outcome]) -> dict[str, float]:
    """Means over seeds."""
    first = 1 if args.scratch else 0

    def over_seeds(values: list[float]) -> float:
        return float(np.mean(values))

    every = [learned(o.macro_f1, args.scratch) for o in outcomes]
    return {
        "macro_f1": over_seeds(every),
        "macro_f1_spread": float(np.std(every)),
        "macro_f1_last": over_seeds([float(np.mean(o.macro_f1[-1][first:])) for o in outcomes]),
        "macro_f1_new": over_seeds(
            [float(np.mean([o.macro_f1[t][t] for t in range(1, CHUNKS + 1)])) for o in outcomes]
        ),
        "accuracy": over_seeds([learned(o.accuracy, args.scratch) for o in outcomes]),
        "forgetting": over_seeds([forgotten(o.macro_f1, args.scratch) for o in outcomes]),
        "forgetting_accuracy": over_seeds([forgotten(o.accuracy, args.scratch) for o in outcomes]),
        "device_seconds_a_chunk": over_seeds([float(np.mean(o.device_seconds)) for o in outcomes]),
        "held_bytes": over_seeds([float(o.held_bytes) for o in outcomes]),
    }


def peak_of(args: argparse.Namespace, row: str) -> int:
    """Most resident bytes of a fresh process that trains one device's last chunk, one round."""
    command = [sys.executable, __file__, "--child", row, "--data", str(args.data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return int(done.stdout.split()[-1])


def child(args: argparse.Namespace) -> None:
    """One device, all chunks' data arriving one after another, one round each."""
    args.rounds, args.scratch, args.tuning = 1, True, False
    setting = setting_for(args, 0)
    stream = setting.stream
    for chunks in (stream.devices, stream.all_labels):
        for devices in chunks:
            if args.child != "one place, all labels":
                del devices[1:]
    ROWS[args.child](setting)
    print(peak_resident_bytes())


def print_table(args: argparse.Namespace, rows: dict[str, dict[str, float]]) -> None:
    """For people."""
    console = Console(width=170)
    table = Table(title="WISDM by user, chunks of time; macro-F1 and accuracy in percent")
    for name in (
        "row",
        "macro-F1",
        "± seeds",
        "at the end",
        "newest chunk",
        "accuracy",
        "forgetting",
        "forgetting (acc.)",
        "device s a chunk",
        "device keeps kB",
        "peak MB",
    ):
        table.add_column(name, justify="left" if name == "row" else "right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['macro_f1']:.1f}",
            f"{row['macro_f1_spread']:.1f}",
            f"{row['macro_f1_last']:.1f}",
            f"{row['macro_f1_new']:.1f}",
            f"{row['accuracy']:.1f}",
            f"{row['forgetting']:.1f}",
            f"{row['forgetting_accuracy']:.1f}",
            f"{row['device_seconds_a_chunk']:.2f}",
            f"{row['held_bytes'] / 1e3:.0f}",
            f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else "",
        )
    console.print(table)


def missed_bars(rows: dict[str, dict[str, float]]) -> list[str]:
    """Of the issue: the whole method, exemplars included, beside labelled-only FedAvg."""
    missed = []
    gain = rows[WHOLE]["macro_f1"] - rows[LABELLED]["macro_f1"]
    if gain < LEAST_GAIN:
        missed.append(f"macro-F1 is {gain:+.1f} points from labelled-only, expected +{LEAST_GAIN}")
    forgets, theirs = rows[WHOLE]["forgetting"], rows[LABELLED]["forgetting"]
    most = MOST_FORGETTING * max(0.0, theirs)
    if forgets > most:
        missed.append(
            f"forgetting is {forgets:.1f} points, expected at most {most:.1f}, half of {theirs:.1f}"
        )
    return missed


def like_with_like(rows: dict[str, dict[str, float]]) -> list[str]:
    """What is the method's and what the buffer's: both sides with exemplars, or neither."""
    lines = []
    for name, other in LIKE_WITH_LIKE:
        if {name, other} <= set(rows):
            ours, theirs = rows[name], rows[other]
            lines.append(
                f"{name} beside {other}: macro-F1 {ours['macro_f1'] - theirs['macro_f1']:+.1f} "
                f"points, forgetting {ours['forgetting']:.1f} and {theirs['forgetting']:.1f}"
            )
    return lines


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="one seed, three rounds; no bars")
    made.add_argument("--json", type=Path, help="write every figure to a file")
    made.add_argument("--check", action="store_true", help="exit 1 and name a bar that is missed")
    made.add_argument("--scratch", action="store_true", help="begin with random weights")
    made.add_argument("--tuning", action="store_true", help="validation windows, seeds 100 to 104")
    made.add_argument("--rounds", type=int, default=ROUNDS, help="in each chunk")
    made.add_argument("--rows", nargs="+", choices=list(ROWS), help="default: all")
    made.add_argument("--jobs", type=int, default=os.cpu_count(), help="rows at a time")
    made.add_argument("--data", type=Path, default=DATA, help="folder with train.txt and val.txt")
    made.add_argument("--child", choices=list(ROWS), help=argparse.SUPPRESS)
    return made


def main() -> int:
    """Run the rows, print the table, check the bars."""
    args = parser().parse_args()
    if not (args.data / "train.txt").is_file():
        print(f"{args.data}: WISDM is not there (see ../shared/data/README.md)", file=sys.stderr)
        return 2
    if args.child:
        child(args)
        return 0
    args.rows = args.rows or list(ROWS)[: QUICK_ROWS if args.quick else None]
    if args.quick:
        args.rounds = min(args.rounds, 3)
    seeds = (0,) if args.quick else TUNING_SEEDS if args.tuning else SEEDS
    lines = describe(("torch",))
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        waiting = {
            row: [pool.submit(run_one, args, row, seed) for seed in seeds] for row in args.rows
        }
        outcomes = {row: [future.result() for future in some] for row, some in waiting.items()}
    rows = {row: figures(args, some) for row, some in outcomes.items()}
    if not args.tuning and not args.quick:
        for row, found in rows.items():
            found["peak_bytes"] = peak_of(args, row)
    print("\n".join(lines))
    print(
        f"stream: {CHUNKS} chunks of {DEVICES} devices, {args.rounds} rounds each, "
        f"{LABELLED_SHARE:.0%} labels, seeds {', '.join(map(str, seeds))}, "
        f"{'validation' if args.tuning else 'test'} windows, "
        f"{'random weights' if args.scratch else 'a model from the factory'} at the beginning"
    )
    print_table(args, rows)
    print(f"whole run: {time.perf_counter() - began:.0f} s")
    if args.json:
        record = {
            "machine": lines,
            "seeds": seeds,
            "rounds": args.rounds,
            "scratch": args.scratch,
            "rows": rows,
            "outcomes": {row: [asdict(o) for o in some] for row, some in outcomes.items()},
        }
        args.json.write_text(json.dumps(record, indent=1))
    for line in like_with_like(rows):
        print(line)
    if args.quick or not {WHOLE, LABELLED} <= set(rows):
        return 0
    missed = missed_bars(rows)
    for line in missed:
        print(f"MISSED: {line}")
    if not missed:
        print("all bars met")
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
