"""Quantization on real models, each format beside the tools that people use for it.

    python benchmarks/quantization.py [--quick] [--json FILE] [--check] [--only vww rfb gguf]

Visual wake words (TFLite) and RFB-320 (ONNX, TFLite) of ../shared/data, and a language model of
../shared/models (GGUF): beside AI Edge Quantizer, onnxruntime and llama.cpp, in the same run, timed
in turns on one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import options, quantization_gguf, quantization_rfb, quantization_vww
from benchmarks.machine import describe

PARTS = ("vww", "rfb", "gguf")
PEERS = ["onnxruntime", "ai-edge-quantizer", "ai-edge-litert", "llama-cpp-python"]
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@dataclass(frozen=True)
class Part:
    """What one part measured.

    Attributes:
        tables: to print.
        missed: bars, in words.
        rows: for JSON.
    """

    tables: Sequence[Table]
    missed: Sequence[str]
    rows: dict[str, list[dict[str, Any]]]


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of data and models")
    args = options.parse(parser)
    console = Console(width=None if sys.stdout.isatty() else 150)
    if not (args.shared / "data" / "README.md").is_file():
        sys.exit(f"{args.shared}: has no data/README.md; give the shared folder with --shared")
    head = describe(PEERS)
    for line in head:
        console.print(line, highlight=False)
    measures = {"vww": _vww, "rfb": _rfb, "gguf": _gguf}
    found: dict[str, Part] = {}
    for name in args.only:
        found[name] = measures[name](args)
        for table in found[name].tables:
            console.print(table)
    if args.json:
        rows = {name: part.rows for name, part in found.items()}
        args.json.write_text(json.dumps({"head": head, **rows}, indent=1))
    missed = [bar for part in found.values() for bar in part.missed]
    if args.check and not args.quick:
        for bar in missed:
            console.print(f"MISSED: {bar}", highlight=False)
        if missed:
            sys.exit(1)
        console.print("every bar is met", highlight=False)


def _vww(args: argparse.Namespace) -> Part:
    data = args.shared / "data"
    few = {"calibration": 8, "runs": 20} if args.quick else {}
    models = quantization_vww.vww_rows(data, **few)
    few = {"calibration": 4, "evaluation": 4, "runs": 5} if args.quick else {}
    repaired = quantization_vww.repair_rows(data, **few)
    table = _table(
        "visual wake words, 96 photos with labels; calibrated on others",
        ("by", "recipe", "bytes", "smaller", "accuracy", "agreement", "SQNR dB", "p50 ms"),
    )
    for row in models:
        figures = (f"{row.accuracy:.4f}", f"{row.agreement:.4f}", f"{row.sqnr_db:.1f}")
        _add(table, row.who, row.recipe, row.nbytes, row.ratio, figures, row.p50_ms, row.problem)
    second = _table(
        "RFB-320.tflite, whose operator codes stand in the deprecated field",
        ("by", "recipe", "bytes", "smaller", "int8 layers", "boxes dB", "scores dB", "p50 ms"),
    )
    for one in repaired:
        figures = (
            f"{one.quantized} of {one.layers}", f"{one.boxes_db:.1f}", f"{one.scores_db:.1f}",
        )  # fmt: skip
        _add(second, one.who, one.recipe, one.nbytes, one.ratio, figures, one.p50_ms, one.problem)
    missed = quantization_vww.missed_bars(models, repaired)
    rows = {"models": [asdict(r) for r in models], "repaired": [asdict(r) for r in repaired]}
    return Part((table, second), missed, rows)


def _rfb(args: argparse.Namespace) -> Part:
    data = args.shared / "data"
    few = {"calibration": 8, "evaluation": 8, "runs": 10} if args.quick else {}
    models = quantization_rfb.model_rows(data, **few)
    if args.quick:
        memory = quantization_rfb.memory_rows(data, (4, 16), ("minmax",))
    else:
        memory = quantization_rfb.memory_rows(data)
    table = _table(
        "RFB-320.onnx, SQNR of its outputs against float over photos",
        ("by", "recipe", "bytes", "smaller", "boxes dB", "scores dB", "p50 ms"),
    )
    for row in models:
        figures = (f"{row.boxes_db:.1f}", f"{row.scores_db:.1f}")
        _add(table, row.who, row.recipe, row.nbytes, row.ratio, figures, row.p50_ms, row.problem)
    second = _table(
        "memory of calibration, each in a process of its own",
        ("by", "method", "samples", "peak MB", "of it calibration", "seconds"),
    )
    for one in memory:
        peak, grown = (f"{n / 1e6:,.0f}" for n in (one.peak_bytes, one.grown_bytes))
        if not one.peak_bytes:
            peak, grown = f"over {quantization_rfb.CAP_BYTES / 1e6:,.0f}", ""
        seconds = f"{one.seconds:.1f}" if one.peak_bytes else ""
        second.add_row(one.who, one.method, str(one.samples), peak, grown, seconds)
    missed = quantization_rfb.missed_bars(models, memory)
    rows = {"models": [asdict(r) for r in models], "memory": [asdict(r) for r in memory]}
    return Part((table, second), missed, rows)


def _gguf(args: argparse.Namespace) -> Part:
    names = ("Q4_K",) if args.quick else tuple(quantization_gguf.ENCODERS)
    tokens = 256 if args.quick else 4096
    errors = quantization_gguf.error_rows(args.shared, names)
    files = quantization_gguf.file_rows(args.shared, names, tokens, args.threads)
    table = _table(
        "K-quants on the matrices of a trained model: squared error next to llama.cpp's",
        ("type", "importance", "error", "tensors worse", "MB/s", "llama.cpp's MB/s"),
    )
    for row in errors:
        table.add_row(
            row.type_name, "yes" if row.weighted else "no", f"{row.error:.4f}",
            f"{row.worse} of {row.tensors}", f"{row.speed:.1f}", f"{row.their_speed:.1f}",
        )  # fmt: skip
    second = _table(
        "the whole model in llama.cpp, against its F16 file",
        ("by", "recipe", "bytes", "smaller", "perplexity", "of F16", "mean KL", "same first"),
    )
    for one in files:
        before = next(metric.before for metric in one.metrics if metric.name == "perplexity")
        second.add_row(
            one.who, one.recipe, f"{one.nbytes:,}", f"{one.ratio:.2f}x",
            f"{one.metric('perplexity'):.3f}", "" if before is None else f"{before:.3f}",
            f"{one.metric('mean_kl'):.5f}", f"{one.metric('same_top1'):.4f}",
        )  # fmt: skip
    missed = quantization_gguf.missed_bars(errors, files)
    rows = {"errors": [asdict(r) for r in errors], "files": [asdict(r) for r in files]}
    return Part((table, second), missed, rows)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < 2 else "right", overflow="fold")
    return table


def _add(
    table: Table,
    who: str,
    recipe: str,
    nbytes: int,
    ratio: float,
    figures: Sequence[str],
    p50_ms: float,
    problem: str,
) -> None:
    """A row of a file; what is wrong with it stands beside its recipe."""
    if problem and math.isnan(p50_ms):
        table.add_row(who, f"{recipe}: {problem}", f"{nbytes:,}" if nbytes else "")
        return
    named = f"{recipe}: {problem}" if problem else recipe
    table.add_row(who, named, f"{nbytes:,}", f"{ratio:.2f}x", *figures, f"{p50_ms:.2f}")


if __name__ == "__main__":
    main()
