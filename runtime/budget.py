"""Sizes as people write them, and the memory there is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import UsageError

_UNITS = {
    "": 1, "B": 1,
    "K": 1 << 10, "KIB": 1 << 10, "KB": 10**3,
    "M": 1 << 20, "MIB": 1 << 20, "MB": 10**6,
    "G": 1 << 30, "GIB": 1 << 30, "GB": 10**9,
    "T": 1 << 40, "TIB": 1 << 40, "TB": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*|%)\s*")


@dataclass(frozen=True)
class Budget:
    """Bytes that weights, windows, caches, buffers and tables together may take."""

    nbytes: int


def parse_size(text: str | int, whole: int | None = None) -> int:
    """Bytes of '512MiB', '2GiB', '2GB', '1.5G', a plain number, or '50%' of `whole`.

    Raises:
        UsageError: not a size, or a percentage where there is nothing to take it of.
    """
    if isinstance(text, int):
        if text <= 0:
            raise UsageError(f"a size must be above 0 bytes, not {text}")
        return text
    match = _SIZE.fullmatch(text)
    number, unit = (match[1], match[2]) if match else ("", "?")
    if unit == "%" and whole is not None:
        size = int(float(number) / 100 * whole)
    elif unit.upper() in _UNITS and number:
        size = int(float(number) * _UNITS[unit.upper()])
    else:
        raise UsageError(f"'{text}' is not a size; write it as 512MiB, 2GiB, 2GB or 50%")
    if size <= 0:
        raise UsageError(f"'{text}' is 0 bytes; write a size as 512MiB, 2GiB, 2GB or 50%")
    return size


def format_size(nbytes: float) -> str:
    """'1.5 GiB': three significant digits in binary units."""
    value, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    if units[0] == "B" or abs(value) >= 999.5:  # three digits would round to 1e+03
        return f"{value:.0f} {units[0]}"
    return f"{value:.3g} {units[0]}"


def available_memory() -> int:
    """Bytes that this process could take without swapping: the system's, and its cgroup's rest."""
    return max(0, min([_system_available(), *_cgroup_rests()]))


def memory_limit() -> int | None:
    """Bytes that this process's cgroup and those above it allow; None: all of the machine's."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    least = min((limit for limit, _ in _cgroups()), default=whole)
    return least if least < whole else None  # v1 writes "no limit" as a number


def _cgroup_rests(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    return [limit - used for limit, used in _cgroups(root)]


def _cgroups(root: Path = Path("/sys/fs/cgroup")) -> list[tuple[int, int]]:
    """Limit and use of this process's memory cgroup and of each one above it, v1 or v2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # v2
            base, limit, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *(p for p in group.parents if p.is_relative_to(base))):
            try:
                most, now = (folder / limit).read_text().strip(), (folder / used).read_text()
            except OSError:
                continue
            if most.isdigit():
                found.append((int(most), int(now)))
    return found


def _system_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_in_use() -> int:
    """Bytes that this process has in memory now, each page once however often it is mapped.

    Where the system does not tell, its peak.
    """
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return peak_memory()


def peak_memory() -> int:
    """Largest resident size that this process has had, in bytes; 0 where it is not told."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    except ImportError:
        return 0
