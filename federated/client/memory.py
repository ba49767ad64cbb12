"""Watches the memory of this process while it trains."""

from __future__ import annotations

import os

MARGIN_BYTES = 64 << 20  # the allocator's and torch's own: a budget is of the model and the data
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | None = None) -> int:
    """Memory of a process that is resident now; 0 where /proc does not say."""
    try:
        with open(f"/proc/{pid or 'self'}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * PAGE
    except (OSError, IndexError, ValueError):
        return 0


class MemoryGuard:
    """Says when training has taken more than its budget, counted from now.

    Attributes:
        exceeded_bytes: what it had taken then; 0: it has not.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._before = resident_bytes()
        self.exceeded_bytes = 0

    def exceeded(self) -> bool:
        """Asked before each step."""
        if self._budget and not self.exceeded_bytes:
            taken = resident_bytes() - self._before
            if taken > self._budget + MARGIN_BYTES:
                self.exceeded_bytes = taken
        return self.exceeded_bytes > 0
