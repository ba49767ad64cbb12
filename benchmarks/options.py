"""The options that every benchmark takes, declared once."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the common options; a benchmark adds its own."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument(
        "--quick", action="store_true", help="a small shape, under a minute; bars do not apply"
    )
    made.add_argument("--json", type=Path, help="write every figure to a file")
    made.add_argument(
        "--check", action="store_true", help="exit 1 and name the bar when one is missed"
    )
    made.add_argument(
        "--keep", action="store_true", help="keep the synthetic models for the next run"
    )
    made.add_argument(
        "--work", type=Path, default=Path("/work/bench"), help="folder for the models"
    )
    made.add_argument(
        "--threads",
        type=int,
        default=0,
        help="compute threads, of each contender (default: all cores)",
    )
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line's options, the number of threads chosen and the models' folder made."""
    args = made.parse_args()
    args.threads = args.threads or os.cpu_count() or 1
    args.work.mkdir(parents=True, exist_ok=True)
    return args
