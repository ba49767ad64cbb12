"""Stops training before its deadline: the next step starts only when it can end in time."""

from __future__ import annotations

import time
from collections.abc import Callable

RESERVE = 0.1  # of the budget, for packing and sending the update
RECENT = 0.3  # share of the newest step in the moving mean


class TimeBudget:
    """Wall-clock seconds for one local update.

    A step is expected to take the moving mean of the steps so far, or half of the slowest one where
    that is more: a phone slows down while it trains.

    Args:
        seconds: from now; 0: no limit.
        clock: monotonic seconds; a clock that the system sets back must not be used.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._step_began = clock()
        self._limit = seconds * (1 - RESERVE) if seconds > 0 else float("inf")
        self._mean = self._slowest = 0.0

    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    def expected_step(self) -> float:
        """Seconds that the next step will likely take; 0 before the first."""
        return max(self._mean, self._slowest / 2)

    def begin_steps(self) -> None:
        """Loading and probing are over, and are no measure of a step."""
        self._step_began = self._clock()

    def step_done(self) -> None:
        """A step has ended; the next begins."""
        now = self._clock()
        taken, self._step_began = now - self._step_began, now
        self._mean = taken if not self._slowest else self._mean + RECENT * (taken - self._mean)
        self._slowest = max(self._slowest, taken)

    def allows_step(self) -> bool:
        """Whether one more step can end in time."""
        return self.spent() + self.expected_step() < self._limit
