"""Child processes under a real memory cap and, on demand, a real limit of storage reads.

Control groups, version 1 or 2, whichever is mounted; else systemd-run for the memory cap. Where
none can be used,
`Cage.memory_kind` says so and the child runs uncapped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# A shell joins the groups and becomes the command. Code between fork and exec would do so too, but
# a Python with threads may not fork.
JOIN = """
set -e
n=$1; shift
while [ "$n" -gt 0 ]; do echo $$ >"$1"; shift; n=$((n-1)); done
exec "$@"
"""


@dataclass(frozen=True)
class Finished:
    """A child's end.

    Attributes:
        output: its standard output; errors: the tail of its standard error.
        killed: it went over the cap and the kernel ended it.
        peak: most memory that its group held, page cache included; 0 where nothing counts it.
    """

    returncode: int
    output: str
    errors: str
    killed: bool
    peak: int


class Cage:
    """A group of processes with limits. A context manager: leaving it removes the groups."""

    def __init__(self, memory: int | None = None) -> None:
        self.memory = memory
        name = f"penstock-bench-{os.getpid()}-{time.monotonic_ns()}"
        self.memory_group = _group(name, "memory")
        self.storage_group = _group(name, "blkio" if _is_v1("blkio") else "io")
        self.memory_kind = "none: no cap is possible here"
        if self.memory_group is not None:
            self.memory_kind = "cgroup v1" if _is_v1("memory") else "cgroup v2"
            if memory is not None:
                limit = "memory.limit_in_bytes" if _is_v1("memory") else "memory.max"
                (self.memory_group / limit).write_text(str(memory))
                if not _is_v1("memory"):
                    _try_write(self.memory_group / "memory.swap.max", "0")
        elif shutil.which("systemd-run"):
            self.memory_kind = "systemd-run"

    def __enter__(self) -> Cage:
        return self

    def __exit__(self, *details: object) -> None:
        groups = {g for g in (self.memory_group, self.storage_group) if g is not None}
        for group in groups:
            for _ in range(50):  # the last process may still be leaving
                try:
                    group.rmdir()
                    break
                except OSError:
                    time.sleep(0.02)

    def run(self, argv: Sequence[str], timeout: float = 900.0) -> Finished:
        """Run a command inside to its end."""
        child = self.start(argv)
        output, errors = child.communicate(timeout=timeout)
        killed = child.returncode in (-9, 137)
        return Finished(child.returncode, output, errors[-2000:], killed, self.peak())

    def start(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command inside. It joins the groups before it runs: nothing escapes the cap."""
        groups = [g for g in (self.memory_group, self.storage_group) if g is not None]
        command = list(argv)
        if self.memory_kind == "systemd-run" and self.memory is not None:
            limits = ["-p", f"MemoryMax={self.memory}", "-p", "MemorySwapMax=0"]
            command = ["systemd-run", "--scope", "--quiet", *limits, *command]
        files = [str(group / "cgroup.procs") for group in groups]
        command = ["/bin/sh", "-c", JOIN, "sh", str(len(files)), *files, *command]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def peak(self) -> int:
        """Most memory that the group held, page cache included; 0 where nothing counts it."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            try:
                return int(((self.memory_group or Path("/")) / name).read_text())
            except (OSError, ValueError):
                continue
        return 0


def throttle(group: str | Path | None, file: str | Path, bytes_per_second: int) -> bool:
    """Hold the group's reads from the disk under `file` to a rate; 0: no limit. False: cannot."""
    if group is None:
        return False
    number = _whole_disk(os.stat(file).st_dev)
    v1 = Path(group) / "blkio.throttle.read_bps_device"
    if v1.exists():
        return _try_write(v1, f"{number} {bytes_per_second}")
    return _try_write(Path(group) / "io.max", f"{number} rbps={bytes_per_second or 'max'}")


def drop_caches() -> bool:
    """Empty the page cache. False where that is not allowed."""
    os.sync()
    return _try_write(Path("/proc/sys/vm/drop_caches"), "3")


def _is_v1(controller: str) -> bool:
    return (CGROUPS / controller / "cgroup.procs").exists()


def _group(name: str, controller: str) -> Path | None:
    """A new group under a controller, or None."""
    parent = CGROUPS / controller if _is_v1(controller) else CGROUPS
    if parent == CGROUPS:
        try:
            if controller not in (CGROUPS / "cgroup.controllers").read_text().split():
                return None
        except OSError:
            return None
        _try_write(CGROUPS / "cgroup.subtree_control", f"+{controller}")
    group = parent / name
    try:
        group.mkdir(exist_ok=True)
    except OSError:
        return None
    return group


def _whole_disk(device: int) -> str:
    """'254:0' of the disk that a partition belongs to: limits are set on disks."""
    major, minor = os.major(device), os.minor(device)
    entry = Path(f"/sys/dev/block/{major}:{minor}")
    if (entry / "partition").exists():
        return (entry.resolve().parent / "dev").read_text().strip()
    return f"{major}:{minor}"


def _try_write(path: Path, text: str) -> bool:
    try:
        path.write_text(text)
        return True
    except OSError:
        return False
