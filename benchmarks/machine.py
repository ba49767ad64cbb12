"""What a table must say of where it was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from penstock import _native
from penstock.loaders.probe import DeviceProfile

IDLE_LOAD = 0.7


def processor() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(peers: Sequence[str] = ()) -> list[str]:
    """Lines for the head of a table."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    load = os.getloadavg()[0]
    lines = [
        f"machine: {processor()}, {os.cpu_count()} cores, {memory / 1e9:.1f} GB of memory, "
        f"{platform.system()} {platform.release()}, load {load:.1f} when the run began",
        f"kernels: {_native.kernels_name()}; "
        + ", ".join(f"{p} {version(p)}" for p in ("penstock", *peers)),
    ]
    if load > IDLE_LOAD:
        lines.append("NOTE: the machine was not idle; times are indicative only")
    return lines


def storage_lines(profile: DeviceProfile) -> list[str]:
    """What the storage and the memory did in this run."""
    rates = ", ".join(
        f"{r.block >> 10} KiB {r.bytes_per_second / 1e6:,.0f}"
        for r in sorted(profile.random, key=lambda r: r.block)
        if r.backend == profile.backend and r.depth == profile.depth
    )
    how = "direct" if profile.direct else "through the page cache"
    return [
        f"storage, this run: {profile.backend}, depth {profile.depth}, {how}: random {rates} MB/s; "
        f"1 MiB in order {profile.sequential_bytes_per_second / 1e6:,.0f} MB/s; "
        f"memory {profile.memory_bytes_per_second / 1e9:.1f} GB/s",
    ]


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
