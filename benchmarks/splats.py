"""Splats: compression of a 4D scene whose truth is known, static scenes, rendering, files.

    python benchmarks/splats.py [--quick] [--json FILE] [--check] [--only PART ...]

compression, ablation: a scene of rays cast (`splat_truth.py`), a model fitted to it, OMG4's stages;
static: biker and playbot beside SPZ and SOG; rendering, scaling, dynamic: the CPU rasteriser;
decoding, memory: .psplat files. The fitted model and the truth's pictures are kept with --keep.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import options
from benchmarks.machine import describe
from benchmarks.splats_part import Job, Part

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def _parts() -> dict[str, Callable[[Job], Part]]:
    """By name, in the order in which they run; short ones first."""
    from benchmarks.splats_compression import ablation, compression
    from benchmarks.splats_files import decoding, memory
    from benchmarks.splats_rendering import dynamic, rendering, scaling
    from benchmarks.splats_static import static

    return {
        "rendering": rendering,
        "scaling": scaling,
        "dynamic": dynamic,
        "decoding": decoding,
        "memory": memory,
        "static": static,
        "compression": compression,
        "ablation": ablation,
    }


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of data")
    args = options.parse(parser)
    parts = _parts()
    chosen = args.only or list(parts)
    for name in chosen:
        if name not in parts:
            parser.error(f"there is no part '{name}'; there are {', '.join(parts)}")
    console = Console(width=None if sys.stdout.isatty() else 150)
    head = describe(["numpy", "fourdgs", "zstandard", "pillow"])
    for line in head:
        console.print(line, highlight=False)
    splats = args.shared / "data" / "splats"
    job = Job(args.work, splats if splats.is_dir() else None, args.quick, args.threads)
    report: dict[str, Any] = {"head": head}
    missed: list[str] = []
    for name in chosen:
        part = parts[name](job)
        for made in part.tables:
            console.print(made)
        for line in part.lines:
            console.print(line, highlight=False)
        report[name] = part.report
        missed += [f"{name}: {bar}" for bar in part.missed]
        if args.json:  # after each part: the later ones take long
            args.json.write_text(json.dumps(report | {"missed": missed}, indent=1))
    if not args.keep:
        shutil.rmtree(args.work / "splats", ignore_errors=True)
    if args.check and not args.quick:
        for bar in missed:
            console.print(f"MISSED: {bar}", highlight=False)
        if missed:
            sys.exit(1)
        console.print("every bar is met", highlight=False)


if __name__ == "__main__":
    main()
