"""When a device takes part, on made-up systems: laptops, phones, machines that show nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.federated.daemon.conditions import Seen, look, readiness
from penstock.federated.daemon.config import Condition, ConditionsConfig


def system(root: Path, *, status: str = "", online: str = "", capacity: str = "80") -> Path:
    supplies = root / "sys/class/power_supply"
    for name, files in {
        "BAT0": {"type": "Battery", "status": status, "capacity": capacity} if status else {},
        "AC": {"type": "Mains", "online": online} if online else {},
        "mouse": {"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "2"},
    }.items():
        for file, text in files.items():
            path = supplies / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/loadavg").write_text("0.25 1.00 2.00 1/99 12\n")
    (root / "proc/meminfo").write_text("MemTotal: 8000 kB\nMemAvailable:    4000 kB\n")
    return root


@pytest.mark.parametrize(
    ("options", "on_power", "charge"),
    [
        ({"status": "Discharging", "online": "0"}, False, 0.8),
        ({"status": "Charging", "online": "1"}, True, 0.8),
        ({"status": "Full"}, True, 0.8),
        ({"status": "Discharging"}, False, 0.8),
        ({"online": "1"}, None, None),
        ({"status": "Discharging", "capacity": "what"}, None, None),
        ({}, None, None),
    ],
)
def test_what_is_seen(
    tmp_path: Path, options: dict[str, str], on_power: bool | None, charge: float | None
) -> None:
    seen = look(network=False, root=system(tmp_path, **options))
    assert (seen.on_power, seen.charge) == (on_power, charge)
    assert (seen.load, seen.free_memory) == (0.25, 4000 << 10)


def test_a_system_that_shows_nothing(tmp_path: Path) -> None:
    seen = look(network=False, root=tmp_path)
    assert (seen.on_power, seen.load, seen.free_memory) == (None, None, None)
    assert readiness(ConditionsConfig(), seen).reason == ""


ON_BATTERY = Seen(False, 0.2, 3.0, 4, True, 100 << 20)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("power", "require", "it runs on battery"),
        ("power", True, ""),
        ("power", False, "it runs on battery"),
        ("battery", 0.3, "the battery is at 20%, 30% is the least"),
        ("battery", 0.1, ""),
        ("idle", "require", "it is busy: load 3.0 on 4 cores"),
        ("idle", False, "it is busy: load 3.0 on 4 cores"),
        ("unmetered", "require", "the network connection is metered"),
        ("unmetered", True, ""),
        ("free_memory", "256MiB", "100 MiB of memory are free, 256 MiB is the least"),
        ("free_memory", "50MiB", ""),
    ],
)
def test_each_condition_by_itself(name: str, value: Condition, reason: str) -> None:
    rest: dict[str, Condition] = dict.fromkeys(
        ("power", "battery", "idle", "unmetered", "free_memory"), "ignore"
    )
    assert readiness(ConditionsConfig(**(rest | {name: value})), ON_BATTERY).reason == reason


def test_all_reasons_are_said() -> None:
    ready = readiness(ConditionsConfig(idle="require"), ON_BATTERY)
    assert ready.reason.count(";") == 4
    assert (ready.battery, ready.on_power) == (0.2, False)
    assert readiness(ConditionsConfig(), Seen(True, 0.1, metered=False)).reason == ""
