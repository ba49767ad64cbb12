"""What the parent writes is what the child reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.task_file import read_task, write_task


@dataclass(frozen=True)
class Inner:
    name: str
    share: float


@dataclass(frozen=True)
class Outer:
    path: str
    layers: tuple[Inner, ...]
    names: frozenset[str]
    extra: Inner | None
    missing: Inner | None
    count: int


def test_a_task_survives(tmp_path: Path) -> None:
    task = Outer(
        "a", (Inner("b", 0.5), Inner("c", 1.0)), frozenset({"x", "y"}), Inner("d", 0.0), None, 3
    )
    write_task(tmp_path / "task.json", task)
    assert read_task(tmp_path / "task.json", Outer) == task
