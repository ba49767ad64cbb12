"""The time budget, with a clock of our own and with a real training."""

from __future__ import annotations

from penstock.federated.training.time_budget import TimeBudget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(budget: TimeBudget, clock: Clock, step: float, most: int = 10_000) -> int:
    steps = 0
    while steps < most and budget.allows_step():
        clock.now += step
        budget.step_done()
        steps += 1
    return steps


def test_it_stops_before_the_deadline_with_a_reserve() -> None:
    clock = Clock()
    budget = TimeBudget(10.0, clock)
    assert run(budget, clock, 1.0) == 8  # the ninth would end at 9.0, where the reserve begins
    assert clock.now - 100 <= 9.0


def test_without_seconds_there_is_no_limit() -> None:
    clock = Clock()
    assert run(TimeBudget(0.0, clock), clock, 1e6, most=50) == 50


def test_one_slow_step_makes_it_careful() -> None:
    clock = Clock()
    budget = TimeBudget(100.0, clock)
    run(budget, clock, 0.1, most=10)
    before = budget.expected_step()
    clock.now += 20.0
    budget.step_done()
    run(budget, clock, 0.1, most=40)
    assert before < 0.2
    assert budget.expected_step() >= 10.0  # half of the slowest, long after it


def test_loading_is_no_measure_of_a_step() -> None:
    clock = Clock()
    budget = TimeBudget(10.0, clock)
    clock.now += 5.0
    budget.begin_steps()
    assert run(budget, clock, 0.1) in (39, 40), "of the four seconds left, in steps of a tenth"


def test_time_spent_before_the_first_step_counts() -> None:
    clock = Clock()
    budget = TimeBudget(10.0, clock)
    clock.now += 9.5
    assert not budget.allows_step()
