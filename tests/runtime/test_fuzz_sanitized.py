"""Thousands of damaged bundles, opened and run: native/tests/fuzz_bundle.py in a child process.

1,000 with the installed native module, and others with one that is built under the address and
undefined behaviour sanitizers, in build/sanitized (a minute or two the first time). `.ci/run` runs
another 10,000 under the sanitizers; PENSTOCK_FUZZ says how many of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "native" / "tests" / "fuzz_bundle.py"
BUILD = ROOT / "build" / "sanitized"
COUNT = int(os.environ.get("PENSTOCK_FUZZ", "1000"))


def fuzz(
    folder: Path,
    count: int,
    *args: str,
    env: dict[str, str] | None = None,
    script: Path = SCRIPT,
    least_ran: float = 1 / 20,
) -> None:
    """Run it. Fails with what was found, or how the child died.

    Args:
        least_ran: more than this share of the files must be taken.
    """
    done = subprocess.run(
        [sys.executable, str(script), str(folder), "--count", str(count), *args],
        env={**os.environ, "XDG_CACHE_HOME": str(folder), **(env or {})},
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
    assert outcomes["ran"] > count * least_ran and outcomes["FormatError"] > count / 3


def memory_folder(fallback: Path) -> Path:
    """Files that live for a millisecond need no disk."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK):
        return Path(tempfile.mkdtemp(prefix="penstock-fuzz-", dir=shared))
    return fallback


def test_no_mutation_crashes_or_raises_something_foreign(tmp_path: Path) -> None:
    fuzz(tmp_path, COUNT, "--first", "100000")


def build_sanitized() -> Path:
    """The native module under the sanitizers; only what changed is compiled again."""
    nanobind = pytest.importorskip("nanobind", reason="it builds the module")
    cmake = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release"]
    cmake += ["-DSKBUILD=ON", "-DPENSTOCK_SANITIZE=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    cmake += [f"-Dnanobind_DIR={nanobind.cmake_dir()}"]
    try:
        subprocess.run(["cmake", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no cmake to build with")
    for command in (cmake, ["cmake", "--build", str(BUILD), "--target", "_native"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (module,) = BUILD.glob("_native.*so")
    return module


def runtime_library(name: str) -> str:
    """Where the compiler keeps a sanitizer's library; skips where it has none."""
    try:
        out = subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no gcc to ask for the sanitizers' libraries")
    path = out.stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"gcc has no {name}")
    return path


def fuzz_sanitized(
    fallback: Path, count: int, script: Path = SCRIPT, least_ran: float = 1 / 20
) -> None:
    """The same with the module under the sanitizers; skips where it cannot be built."""
    libraries = [runtime_library("libasan.so"), runtime_library("libubsan.so")]
    module = build_sanitized()
    env = {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "PYTHONMALLOC": "malloc",
    }
    folder = memory_folder(fallback)
    native = ["--first", "200000", "--native", str(module)]
    try:
        fuzz(folder, count, *native, env=env, script=script, least_ran=least_ran)
    finally:
        for left in (*folder.glob("current.*"), folder / "number"):
            left.unlink(missing_ok=True)
        if folder != fallback:
            folder.rmdir()


@pytest.mark.slow
def test_no_mutation_upsets_the_sanitizers(tmp_path: Path) -> None:
    fuzz_sanitized(tmp_path, COUNT)
