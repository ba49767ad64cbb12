"""Decoding with everything in memory, beside llama.cpp; and both with half of the model in memory.

    python benchmarks/resident_decode.py [--quick] [--json FILE] [--check]

An Arcee-shaped model of a billion parameters in Q8_0, synthetic weights: the same in our bundle
and in llama.cpp's GGUF.
Dense: every pre-activation is positive by construction, so no row can be skipped. Sparse: a tenth
of the neurons, from a generator.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from penstock import _native
from penstock.loaders.bundle import Bundle, open_bundle
from penstock.loaders.probe import probe

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import options
from benchmarks.capped import Cage, drop_caches
from benchmarks.decode_child import Job
from benchmarks.machine import describe, storage_lines
from benchmarks.synthetic import SHAPES, write_bundle, write_gguf
from benchmarks.task_file import write_task

CHILD = Path(__file__).with_name("decode_child.py")
DENSE_BAR, SPARSE_BAR = 0.9, 1.5
INTERPRETER = 192 << 20  # beside half of the model, the same for both under the cap
SETTLE_S = 0.05  # ggml's threads spin for a while after a token

Answer = dict[str, Any]


class Contender:
    """A child process that decodes on demand, if wanted under a memory cap."""

    def __init__(self, job: Job, work: Path, cap: int | None) -> None:
        self.job = job
        self.cage = Cage(cap)
        file = work / f"job-{job.role}.json"
        write_task(file, job)
        self.child: subprocess.Popen[str] = self.cage.start([sys.executable, str(CHILD), str(file)])
        self._answer()
        file.unlink()

    def decode(self, tokens: int) -> Answer:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps({"tokens": tokens}) + "\n")
        self.child.stdin.flush()
        answer = self._answer()
        time.sleep(SETTLE_S)
        return answer

    def _answer(self) -> Answer:
        assert self.child.stdout is not None and self.child.stderr is not None
        line = self.child.stdout.readline()
        if not line:
            code = self.child.wait()
            why = "killed: over the memory cap" if code == -9 else self.child.stderr.read()[-2000:]
            raise SystemExit(f"{self.job.role}: {why}")
        answer: Answer = json.loads(line)
        return answer

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.communicate(timeout=60)
        self.cage.__exit__()


def alternate(
    contenders: list[Contender], rounds: int, tokens: list[int]
) -> dict[str, list[Answer]]:
    """A B C A B C: each decodes its tokens in turn, after one turn that is not counted."""
    out: dict[str, list[Answer]] = {c.job.role: [] for c in contenders}
    for turn in range(rounds + 1):
        for contender, count in zip(contenders, tokens, strict=True):
            answer = contender.decode(count)
            if turn:
                out[contender.job.role].append(answer)
    return out


def rate(answer: Answer) -> float:
    """Tokens a second: of the median token."""
    return 1.0 / float(np.median(answer["seconds"]))


def paired(answers: dict[str, list[Answer]], ours: str, theirs: str) -> float:
    """Median of the rounds' ratios."""
    return float(
        np.median([rate(a) / rate(b) for a, b in zip(answers[ours], answers[theirs], strict=True)])
    )


def touched(bundle: Bundle, computed: float, predictor: bool) -> float:
    """Bytes of weights that a token's arithmetic reads."""
    names = {t.name for p in bundle.predictors if p for t in (p.fc1, p.fc2)}
    total = sum(t.nbytes for name, t in bundle.resident.items() if predictor or name not in names)
    return total + computed * bundle.layers * bundle.neurons * bundle.rows * bundle.row_bytes


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    args = options.parse(parser)
    console = Console(width=None if sys.stdout.isatty() else 140)
    shape = SHAPES["arcee-quick" if args.quick else "arcee-1b"]
    path = args.work / f"{shape.name}-Q8_0.penstock.gguf"
    plain = args.work / f"{shape.name}-Q8_0.gguf"
    kept = path.exists() and plain.exists()
    head = describe(["llama-cpp-python"])
    if not kept:
        write_bundle(shape, "Q8_0", path)
        write_gguf(shape, "Q8_0", plain)
    try:
        result = measure(args, path, plain, args.threads)
    finally:
        if not kept and not args.keep:
            path.unlink(missing_ok=True)
            plain.unlink(missing_ok=True)
    for line in (*head, *result.pop("storage")):
        console.print(line, highlight=False)
    show(console, result)
    if args.json:
        args.json.write_text(json.dumps({"head": head, **result}, indent=1))
    missed = missed_bars(result)
    if args.check and not args.quick:
        for bar in missed:
            console.print(f"MISSED: {bar}", highlight=False)
        if missed:
            sys.exit(1)
        console.print("every bar is met", highlight=False)


def measure(args: argparse.Namespace, path: Path, plain: Path, threads: int) -> dict[str, Any]:
    bundle = open_bundle(path)
    profile = probe(path, quick=True)
    memory = _native.measure_memory(threads, (64 if args.quick else 512) << 20, 3)
    drop_caches()
    with ExitStack() as stack:
        jobs = [Job("dense", str(path), threads, profile), Job("llama", str(plain), threads)]
        jobs.append(Job("sparse", str(path), threads, profile))
        contenders = [stack.enter_context(Contender(job, args.work, None)) for job in jobs]
        resident = alternate(contenders, args.rounds, [16, 16, 24])
    memory = max(memory, _native.measure_memory(threads, (64 if args.quick else 512) << 20, 3))
    half = bundle.file.size // 2
    drop_caches()
    with ExitStack() as stack:
        jobs = [
            Job("window", str(path), threads, profile, half),
            Job("llama-mmap", str(plain), threads),
        ]
        contenders = [
            stack.enter_context(Contender(job, args.work, half + INTERPRETER)) for job in jobs
        ]
        capped = alternate(contenders, 3, [24, 3])
        cap_kind = contenders[0].cage.memory_kind
        peaks = {c.job.role: c.cage.peak() for c in contenders}
    computed = {role: resident[role][-1]["computed"] for role in ("dense", "sparse")}
    return {
        "model": f"{path.name} {bundle.file.size / 1e9:.2f} GB, "
        f"{plain.name} {plain.stat().st_size / 1e9:.2f} GB",
        "threads": threads,
        "memory_bytes_per_second": memory,
        "touched": {role: touched(bundle, computed[role], role == "sparse") for role in computed},
        "resident": resident,
        "capped": capped,
        "cap": half + INTERPRETER,
        "cap_kind": cap_kind,
        "peaks": peaks,
        "dense_ratio": paired(resident, "dense", "llama"),
        "sparse_ratio": paired(resident, "sparse", "llama"),
        "capped_ratio": paired(capped, "window", "llama-mmap"),
        "storage": storage_lines(profile),
    }


def missed_bars(result: dict[str, Any]) -> list[str]:
    bars = [
        ("dense", result["dense_ratio"], DENSE_BAR),
        ("90 % sparse", result["sparse_ratio"], SPARSE_BAR),
    ]
    missed = [
        f"{name} decode / llama.cpp: {value:.2f}, must be at least {least}"
        for name, value, least in bars
        if not value >= least
    ]
    active = result["resident"]["dense"][-1]["active"]
    if active < 0.99:
        missed.append(f"the dense run is not dense: only {active:.1%} of the neurons were active")
    return missed


def show(console: Console, result: dict[str, Any]) -> None:
    resident, capped = result["resident"], result["capped"]
    console.print(
        f"synthetic weights, the same in both files: {result['model']}; {result['threads']} "
        f"threads each; llama.cpp without mmap; "
        f"contenders take turns, {len(resident['dense'])} rounds, medians; "
        f"memory reads {result['memory_bytes_per_second'] / 1e9:.1f} GB/s",
        highlight=False,
    )
    table = Table(title="Q8_0 decode, everything in memory")
    for name in (
        "",
        "tokens/s",
        "ms/token",
        "vs llama.cpp",
        "GB read of memory/token",
        "of memory bandwidth",
    ):
        table.add_column(name, justify="right" if name else "left")
    names = {"dense": "penstock, dense", "llama": "llama.cpp", "sparse": "penstock, 90 % sparse"}
    for role, name in names.items():
        speed = float(np.median([rate(a) for a in resident[role]]))
        size = result["touched"]["dense" if role == "llama" else role]
        versus = {"dense": result["dense_ratio"], "sparse": result["sparse_ratio"]}.get(role, 1.0)
        limit = size * speed / result["memory_bytes_per_second"]
        table.add_row(
            name,
            f"{speed:.2f}",
            f"{1e3 / speed:.1f}",
            f"{versus:.2f}x",
            f"{size / 1e9:.3f}",
            f"{limit:.0%}",
        )
    console.print(table)
    dense, sparse = resident["dense"][-1], resident["sparse"][-1]
    console.print(
        f"active: {dense['active']:.2%} of the dense run's neurons; the sparse run computes "
        f"{sparse['computed']:.1%} of them, from a "
        f"generator, and its predictor as well (bars: dense {DENSE_BAR}, sparse {SPARSE_BAR})",
        highlight=False,
    )
    table = Table(
        title=f"half of the model: cap {result['cap'] / 1e6:.0f} MB ({result['cap_kind']})"
    )
    for name in ("", "tokens/s", "ms/token", "vs llama.cpp", "peak MB", "MB read/token"):
        table.add_column(name, justify="right" if name else "left")
    for role, name in {
        "window": "penstock, window, 90 % sparse",
        "llama-mmap": "llama.cpp, mmap",
    }.items():
        speed = float(np.median([rate(a) for a in capped[role]]))
        versus = result["capped_ratio"] if role == "window" else 1.0
        read = capped[role][-1].get("bytes_per_token")
        table.add_row(
            name,
            f"{speed:.2f}",
            f"{1e3 / speed:.0f}",
            f"{versus:.1f}x",
            f"{result['peaks'][role] / 1e6:.0f}",
            "-" if read is None else f"{read / 1e6:.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
