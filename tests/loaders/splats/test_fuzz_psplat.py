"""Hundreds of damaged .psplat files: native/tests/fuzz_psplat.py in a child process.

With the installed native module, and with one under the address and undefined behaviour sanitizers
(see tests/runtime/test_fuzz_sanitized.py, which builds it). `.ci/run` runs another 1,500 under the
sanitizers; PENSTOCK_FUZZ says how many of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.runtime.test_fuzz_sanitized import build_sanitized, memory_folder, runtime_library

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "native" / "tests" / "fuzz_psplat.py"
COUNT = int(os.environ.get("PENSTOCK_FUZZ", "300"))


def fuzz(folder: Path, count: int, *args: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "--count", str(count), *args],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=900,
    )
    at = (folder / "number").read_text() if (folder / "number").is_file() else "none"
    assert done.returncode == 0, (
        f"exit status {done.returncode} at mutation {at}\n{done.stdout}\n{done.stderr[-6000:]}"
    )
    outcomes: dict[str, int] = json.loads(done.stdout)["outcomes"]
    assert sum(outcomes.values()) == count
    # The mutations are no use if all are found by a checksum, or if none does harm.
    assert outcomes["ran"] > count / 100 and outcomes["FormatError"] > count / 3


def test_no_mutation_crashes_or_raises_something_foreign(tmp_path: Path) -> None:
    fuzz(tmp_path, COUNT, "--first", "100000")


def test_no_mutation_upsets_the_sanitizers(tmp_path: Path) -> None:
    libraries = [runtime_library("libasan.so"), runtime_library("libubsan.so")]
    module = build_sanitized()
    env = {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "PYTHONMALLOC": "malloc",
    }
    folder = memory_folder(tmp_path)
    try:
        fuzz(folder, COUNT // 2, "--first", "200000", "--native", str(module), env=env)
    finally:
        for name in ("current.psplat", "number"):
            (folder / name).unlink(missing_ok=True)
        if folder != tmp_path:
            folder.rmdir()
