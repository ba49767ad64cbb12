"""Reads by threads, where the system has no room for as many threads as were asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import os, resource, sys
from pathlib import Path
from penstock import _native

def read(depth):
    _native.measure_reads(sys.argv[1], 4096, depth, "threads", 0.001, False)

def threads():
    return len(os.listdir("/proc/self/task"))

read(1)
before = threads()
pages = int(Path("/proc/self/statm").read_text().split()[0])
room = pages * resource.getpagesize() + (64 << 20)  # the stacks of some threads
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (room, hard))
for _ in range(2):
    try:
        read(1024)
    except RuntimeError as error:
        print(error)
    else:
        sys.exit("the limit does nothing here")
    assert threads() == before, "threads are left over"
read(2)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs the /proc of Linux")
def test_threads_that_cannot_be_started_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Resource temporarily unavailable") == 2
