"""What the fuzzers of files share: a sanitized module, numbered mutations, outcomes as JSON."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Fuzzer(Protocol):
    """Makes damaged files of one kind, and opens them."""

    def mutate(self, rng: np.random.Generator) -> bytes: ...

    def repair(self, content: bytes) -> bytes:
        """Right checksums on a damaged file, so that the damage gets past them."""

    def attempt(self, content: bytes, rng: np.random.Generator) -> None:
        """Use it; an exception that is not allowed is a finding."""


def run(
    description: str | None,
    make: Callable[[Path], Fuzzer],
    allowed: Callable[[], tuple[type[Exception], ...]],
    *,
    repaired: float,
    limit: Callable[[], None] | None = None,
) -> int:
    """The exit status of the whole program: 1 where there are findings.

    Args:
        make: the fuzzer, of a folder for its file. allowed: exceptions that refuse a file; both are
            called once the native module is chosen.
        repaired: share of the files that get right checksums.
        limit: bounds the process's memory; not under the sanitizers, which reserve terabytes.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--native", type=Path)
    args = parser.parse_args()
    if args.native is not None:
        use_native(args.native)
    refusals = allowed()
    np.seterr(all="ignore")
    fuzzer = make(args.folder)
    if limit is not None and args.native is None:
        limit()
    outcomes: Counter[str] = Counter()
    findings: dict[str, dict[str, Any]] = {}
    for number in range(args.first, args.first + args.count):
        (args.folder / "number").write_text(str(number))
        rng = np.random.default_rng(number)
        content = fuzzer.mutate(rng)
        if rng.random() < repaired:
            content = fuzzer.repair(content)
        try:
            fuzzer.attempt(content, rng)
            outcomes["ran"] += 1
        except refusals as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            name = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
            found = findings.setdefault(name, {"count": 0, "first": number, "message": str(error)})
            found["count"] += 1
            outcomes["foreign exception"] += 1
    print(json.dumps({"outcomes": dict(outcomes), "findings": findings}, indent=1))
    return 1 if findings else 0


def use_native(path: Path) -> None:
    """Make this build the one that `penstock._native` names."""
    import penstock

    spec = importlib.util.spec_from_file_location("penstock._native", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["penstock._native"] = module
    penstock._native = module
