"""The memory cap is real: a child over it is killed, one under it is not."""

from __future__ import annotations

import sys

import pytest

from benchmarks.capped import Cage

HOLD = "import sys; held = b'x' * (int(sys.argv[1]) << 20); print(len(held))"


def command(megabytes: int) -> list[str]:
    return [sys.executable, "-c", HOLD, str(megabytes)]


@pytest.fixture
def cage() -> Cage:
    cage = Cage(96 << 20)
    if not cage.memory_kind.startswith("cgroup"):
        pytest.skip(f"memory cap: {cage.memory_kind}")
    return cage


def test_a_child_under_the_cap_ends_by_itself(cage: Cage) -> None:
    with cage:
        done = cage.run(command(32))
    assert (done.returncode, done.killed) == (0, False)
    assert 32 << 20 <= done.peak <= 96 << 20


def test_a_child_over_the_cap_is_killed(cage: Cage) -> None:
    with cage:
        done = cage.run(command(256))
    assert done.killed and done.output == ""
    group = cage.memory_group
    assert group is not None and not group.exists()
