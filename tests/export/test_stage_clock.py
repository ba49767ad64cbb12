"""What a stage clock counts and tells."""

from __future__ import annotations

import time

import pytest

from penstock.export.report import Progress
from penstock.export.stage_clock import StageClock


def test_stages_are_timed_and_told_of() -> None:
    told: list[Progress] = []
    clock = StageClock(told.append)
    for _ in range(2):
        with clock("read"):
            time.sleep(0.01)
    assert list(clock.seconds) == ["read"] and 0.02 <= clock.seconds["read"] < 5
    assert [(one.stage, one.done, one.total) for one in told] == [
        ("read", 0, 1),
        ("read", 1, 1),
        ("read", 0, 1),
        ("read", 1, 1),
    ]


def test_a_stage_that_fails_is_not_told_as_done() -> None:
    told: list[Progress] = []
    clock = StageClock(told.append)
    with pytest.raises(ValueError), clock("read"):
        raise ValueError
    assert [one.done for one in told] == [0] and not clock.seconds
