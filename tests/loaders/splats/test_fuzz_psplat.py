"""Hundreds of damaged .psplat files: native/tests/fuzz_psplat.py in a child process.

With the installed native module, and with one under the address and undefined behaviour sanitizers
(see tests/runtime/test_fuzz_sanitized.py, which builds it). `.ci/run` runs another 1,500 under the
sanitizers; PENSTOCK_FUZZ says how many of each.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.runtime.test_fuzz_sanitized import ROOT, fuzz, fuzz_sanitized

SCRIPT = ROOT / "native" / "tests" / "fuzz_psplat.py"
COUNT = int(os.environ.get("PENSTOCK_FUZZ", "300"))
LEAST_RAN = 1 / 100


def test_no_mutation_crashes_or_raises_something_foreign(tmp_path: Path) -> None:
    fuzz(tmp_path, COUNT, "--first", "100000", script=SCRIPT, least_ran=LEAST_RAN)


def test_no_mutation_upsets_the_sanitizers(tmp_path: Path) -> None:
    fuzz_sanitized(tmp_path, COUNT // 2, SCRIPT, LEAST_RAN)
