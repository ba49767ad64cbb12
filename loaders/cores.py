"""The processor cores that this process may use: a container's, not the machine's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from penstock.errors import UsageError

THREADS_MOST = 256  # of compute; each has a stack, and libraries make them all at once
CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process may run on, and has the time of; at least 1.

    A container may be given some cores, or so much time of any of them, or both.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *cpu_quotas()]))


def compute_threads(asked: int | None) -> int:
    """Threads to compute on: as many as are asked for; None: one a core.

    Raises:
        UsageError: fewer than one, or more than any machine has a use for.
    """
    if asked is None:
        return min(usable_cores(), THREADS_MOST)
    if not 1 <= asked <= THREADS_MOST:
        raise UsageError(f"threads is {asked}, expected 1 to {THREADS_MOST}")
    return asked


def cpu_quotas(root: Path = CGROUPS, own: Path = OWN) -> list[int]:
    """Cores' worth of time, rounded up, that this process's cgroup and those above it allow.

    Of version 1 or 2. Groups without a quota are left out, and so is what cannot be read.

    Args:
        root: where cgroups are mounted; own: the file that says which are this process's.
    """
    found = []
    for group, version in _groups(root, own):
        try:
            if version == 2:
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota = (group / "cpu.cfs_quota_us").read_text()
                period = (group / "cpu.cfs_period_us").read_text()
            time, each = int(quota), int(period)
        except (OSError, ValueError):  # no such file, or 'max': no quota
            continue
        if time > 0 and each > 0:  # version 1 writes -1 for no quota
            found.append(-(-time // each))
    return found


def _groups(root: Path, own: Path) -> Iterator[tuple[Path, int]]:
    """Folders of the groups that may have a quota, and the version of each.

    In a container, the path may be that of the host, of which only the root is mounted.
    """
    try:
        lines = own.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        _, controllers, path = fields
        if controllers == "":
            bases, version = [root, root / "unified"], 2
        elif "cpu" in controllers.split(","):
            bases, version = [root / "cpu", root / controllers], 1
        else:
            continue
        for base in dict.fromkeys(bases):
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(base):
                    yield folder, version
