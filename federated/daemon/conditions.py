"""Does the device take part now? Power, charge, load, network and memory, as the system shows them.

What a system does not show (no battery, no NetworkManager) is no reason to stay away; what it shows
and is not as required is one, and the reason says what was seen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from penstock.federated.client.participant import Readiness
from penstock.federated.daemon.config import Condition, ConditionsConfig
from penstock.runtime.budget import format_size, parse_size

IDLE_LOAD = 0.5  # of the cores, over the last minute
METERED_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Seen:
    """What the system shows; None where it does not.

    Attributes:
        charge: of the battery, 0 to 1.
        load: of the last minute, in cores.
    """

    on_power: bool | None = None
    charge: float | None = None
    load: float | None = None
    cores: int = 1
    metered: bool | None = None
    free_memory: int | None = None


def look(*, network: bool = True, root: Path = Path("/")) -> Seen:
    """Look at the system.

    Args:
        network: ask NetworkManager too, which starts a process.
        root: of /sys and /proc, for tests.
    """
    on_power, charge = _power(root / "sys/class/power_supply")
    return Seen(
        on_power,
        charge,
        _load(root / "proc/loadavg"),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        _metered() if network else None,
        _free_memory(root / "proc/meminfo"),
    )


def readiness(conditions: ConditionsConfig, seen: Seen | None = None) -> Readiness:
    """Whether the device takes part, by its configuration and what is seen."""
    if seen is None:
        seen = look(network=conditions.unmetered == "require")
    on_power = conditions.power if isinstance(conditions.power, bool) else seen.on_power
    reasons = []
    if _fails(conditions.power, seen.on_power):
        reasons.append("it runs on battery")
    if isinstance(conditions.battery, float | int) and seen.charge is not None:
        if seen.charge < conditions.battery and not on_power:
            reasons.append(
                f"the battery is at {seen.charge:.0%}, {conditions.battery:.0%} is the least"
            )
    busy = None if seen.load is None else seen.load <= IDLE_LOAD * seen.cores
    if _fails(conditions.idle, busy):
        load = "" if seen.load is None else f": load {seen.load:.1f} on {seen.cores} cores"
        reasons.append(f"it is busy{load}")
    if _fails(conditions.unmetered, None if seen.metered is None else not seen.metered):
        reasons.append("the network connection is metered")
    if conditions.free_memory != "ignore" and seen.free_memory is not None:
        least = parse_size(str(conditions.free_memory))
        if seen.free_memory < least:
            reasons.append(
                f"{format_size(seen.free_memory)} of memory are free, {format_size(least)} is the "
                "least"
            )
    return Readiness(
        "; ".join(reasons),
        -1.0 if seen.charge is None else seen.charge,
        on_power is not False,
    )


def _fails(condition: Condition, seen: bool | None) -> bool:
    """True where it is required and known not to be so, or fixed to false."""
    if isinstance(condition, bool):
        return not condition
    return condition == "require" and seen is False


def _power(folder: Path) -> tuple[bool | None, float | None]:
    """(on power, charge): of the first battery of the device itself, not of a mouse."""
    online: list[bool] = []
    charge, discharging = None, False
    try:
        supplies = sorted(folder.iterdir())
    except OSError:
        return None, None
    for supply in supplies:
        kind = _read(supply / "type")
        if kind == "Battery" and _read(supply / "scope") != "Device":
            try:
                level = float(_read(supply / "capacity") or "") / 100
            except ValueError:
                continue
            charge = level if charge is None else min(charge, level)
            discharging = discharging or _read(supply / "status") == "Discharging"
        elif kind in ("Mains", "USB", "Wireless"):
            online.append(_read(supply / "online") == "1")
    if charge is None:
        return None, None  # no battery: nothing to be careful of
    return (any(online) if online else not discharging), charge


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _load(path: Path) -> float | None:
    try:
        return float((_read(path) or "").split()[0])
    except (ValueError, IndexError):
        return None


def _free_memory(path: Path) -> int | None:
    for line in (_read(path) or "").splitlines():
        if line.startswith("MemAvailable:"):
            try:
                return int(line.split()[1]) << 10
            except (ValueError, IndexError):
                return None
    return None


def _metered() -> bool | None:
    """What NetworkManager says of the primary connection: 1 yes, 3 it guesses so; 2, 4 not."""
    busctl = shutil.which("busctl")
    if busctl is None:
        return None
    service, path = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"
    try:
        done = subprocess.run(
            [busctl, "get-property", service, path, service, "Metered"],
            capture_output=True,
            text=True,
            timeout=METERED_TIMEOUT_S,
            check=True,
        )
        return {"1": True, "3": True, "2": False, "4": False}.get(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
