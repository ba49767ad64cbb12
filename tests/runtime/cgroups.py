"""Hard limits for a child process, of memory or cores: a cgroup of version 1 or 2."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Cgroup:
    """A cgroup of version 1 or 2."""

    path: Path
    version: int

    def limit_cores(self, cores: float) -> None:
        time, period = str(int(cores * 100000)), "100000"  # microseconds
        if self.version == 1:
            (self.path / "cpu.cfs_period_us").write_text(period)
            (self.path / "cpu.cfs_quota_us").write_text(time)
        else:
            (self.path / "cpu.max").write_text(f"{time} {period}")

    def limit(self, nbytes: int) -> None:
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        (self.path / name).write_text(str(nbytes))
        if self.version == 2 and (self.path / "memory.swap.max").exists():
            (self.path / "memory.swap.max").write_text("0")

    @property
    def peak(self) -> int:
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return int((self.path / name).read_text())

    @property
    def kills(self) -> int:
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        fields = dict(line.split() for line in (self.path / name).read_text().splitlines())
        return int(fields["oom_kill"])


MakeCgroup = Callable[[], AbstractContextManager[Cgroup]]


def _roots(controller: str) -> Iterator[tuple[Path, int]]:
    if Path(f"/sys/fs/cgroup/{controller}/cgroup.procs").exists():
        yield Path(f"/sys/fs/cgroup/{controller}"), 1
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        control = root / "cgroup.subtree_control"
        if control.exists() and controller in control.read_text().split():
            yield root, 2


@contextmanager
def make_cgroup(controller: str = "memory") -> Iterator[Cgroup]:
    """A new cgroup, removed at the end; skips where this process may not make one."""
    reason = f"no {controller} cgroup is mounted"
    for root, version in _roots(controller):
        path = root / f"penstock-test-{os.getpid()}"
        try:
            path.mkdir()
        except OSError as error:
            reason = f"{path}: {error.strerror}"
            continue
        try:
            yield Cgroup(path, version)
        finally:
            path.rmdir()
        return
    pytest.skip(f"no hard {controller} limit can be set here: {reason}")
