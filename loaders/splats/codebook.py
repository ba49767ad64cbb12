"""Codebooks of a .psplat file: K entries of d columns, whose numbers may be few.

    half      any float16 numbers
    uniform   low + level * step; with an entry for each level it takes no room in a file
    table     a number of a short table for each level

docs/psplat-format.md, "Codebook entry".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

Levels = NDArray[np.uint16]
Floats = NDArray[np.float32]

MAX_ENTRIES = 1 << 16
MAX_COLUMNS = 256
MAX_MAGNITUDE = 1e9
LEAST_HALF, MOST_HALF = 0x0400, 0xFBFF  # levels of the float16 numbers that are finite
BLOCK = 1 << 14  # numbers that are made at a time, so that temporary arrays stay small


class Map(IntEnum):
    """What a level stands for; the numbers are those of the format."""

    HALF = 0
    UNIFORM = 1
    TABLE = 2


@dataclass(frozen=True, eq=False)
class Codebook:
    """Entries [K, d] of numbers. Made by the functions below; two are the same if one object.

    Attributes:
        map: what levels stand for.
        size: K.
        columns: d.
        level_count: levels are below it.
        levels: [K, d]; None where entry k is level k, and d is 1.
        low, step: of a uniform map.
        numbers: [level_count], of a table.
    """

    map: Map
    size: int
    columns: int
    level_count: int
    levels: Levels | None
    low: float = 0.0
    step: float = 0.0
    numbers: Floats | None = None

    @staticmethod
    def half(values: NDArray[np.floating]) -> Codebook:
        """Of numbers [K, d] or [K], rounded to float16.

        Raises:
            UsageError: one is not finite then.
        """
        with np.errstate(over="ignore"):  # infinite ones are refused
            halves = np.asarray(_rows(values), np.float16)
        if not np.isfinite(halves).all():
            raise UsageError("a codebook has numbers that float16 does not hold")
        levels = levels_of_halves(halves)
        return Codebook(Map.HALF, len(levels), levels.shape[1], MAX_ENTRIES, levels)

    @staticmethod
    def grid(values: NDArray[np.floating], step: float) -> Codebook:
        """Of numbers [K, d] or [K], rounded to multiples of a step.

        Raises:
            UsageError: one is not finite, or they are over 65,536 steps apart.
        """
        rows = np.asarray(_rows(values), np.float64)
        if not (math.isfinite(step) and step > 0 and np.isfinite(rows).all()):
            raise UsageError(f"a codebook's numbers and step ({step}) must be finite")
        multiples = np.rint(rows / step)
        least = float(multiples.min())
        count = float(multiples.max()) - least + 1
        if count > MAX_ENTRIES:
            raise UsageError(f"a codebook has numbers {count:.0f} steps apart; take a larger step")
        levels = (multiples - least).astype(np.uint16)
        book = Codebook(
            Map.UNIFORM, len(rows), rows.shape[1], int(count), levels, least * step, step
        )
        return _checked(book)

    @staticmethod
    def uniform(low: float, step: float, size: int) -> Codebook:
        """Entry k is low + k step; one column."""
        return _checked(Codebook(Map.UNIFORM, size, 1, size, None, float(low), float(step)))

    @staticmethod
    def table(values: NDArray[np.floating]) -> Codebook:
        """Entries [K] of one column, as float32."""
        numbers = np.ascontiguousarray(values, np.float32)
        return _checked(Codebook(Map.TABLE, len(numbers), 1, len(numbers), None, numbers=numbers))

    @staticmethod
    def palette(levels: NDArray[np.integer], numbers: NDArray[np.floating]) -> Codebook:
        """Entries [K, d] of numbers of a table [T], float32.

        Raises:
            UsageError: a level is not below T.
        """
        table = np.ascontiguousarray(numbers, np.float32)
        if levels.size and not 0 <= int(levels.min()) <= int(levels.max()) < len(table):
            raise UsageError(f"a palette has levels outside of its table of {len(table)} numbers")
        own = np.ascontiguousarray(levels, np.uint16)
        return _checked(Codebook(Map.TABLE, len(own), own.shape[1], len(table), own, numbers=table))

    @cached_property
    def entries(self) -> Floats:
        """[K, d]."""
        entries = np.empty((self.size, self.columns), np.float32)
        rows = max(1, BLOCK // self.columns)
        for begin in range(0, self.size, rows):
            end = min(begin + rows, self.size)
            levels: NDArray[np.integer] = np.arange(begin, end)[:, None]
            entries[begin:end] = self._of(levels if self.levels is None else self.levels[begin:end])
        return entries

    def _of(self, levels: NDArray[np.integer]) -> NDArray[np.floating]:
        """What levels stand for."""
        if self.map is Map.HALF:
            return halves_of_levels(levels.astype(np.uint16))
        if self.map is Map.UNIFORM:
            numbers: NDArray[np.floating] = self.low + levels.astype(np.float64) * self.step
            return numbers
        assert self.numbers is not None
        found: Floats = self.numbers[levels]
        return found

    def take(self, order: NDArray[np.integer]) -> Codebook:
        """The codebook of these entries, in this order."""
        if self.levels is not None:
            rows = np.ascontiguousarray(self.levels[order])
            return replace(self, size=len(rows), levels=rows)
        if self.map is Map.TABLE:
            assert self.numbers is not None
            return Codebook.table(self.numbers[order])
        return replace(self, size=len(order), levels=order.astype(np.uint16)[:, None])

    def problem(self) -> str | None:
        """What the format does not allow of its numbers, or None."""
        if not (1 <= self.size <= MAX_ENTRIES and 1 <= self.columns <= MAX_COLUMNS):
            return f"{self.size} entries of {self.columns} columns, expected 1 to 65536 of 1 to 256"
        if self.map is Map.UNIFORM:
            last = self.low + self.step * (self.level_count - 1)
            bad = not (math.isfinite(self.low) and math.isfinite(self.step))
            if bad or self.step < 0 or max(abs(self.low), abs(last)) > MAX_MAGNITUDE:
                return f"numbers from {self.low:g} by {self.step:g}, expected at most 1e9"
        elif self.map is Map.TABLE:
            assert self.numbers is not None
            if not (np.abs(self.numbers) <= MAX_MAGNITUDE).all():  # NaN is not, either
                return "numbers in its table that are not finite or over 1e9"
        elif self.levels is not None and not (
            int(self.levels.min()) >= LEAST_HALF and int(self.levels.max()) <= MOST_HALF
        ):
            return "numbers that are not finite"
        return None


def levels_of_halves(halves: NDArray[np.float16]) -> Levels:
    """16-bit numbers that ascend as the float16 numbers do."""
    bits = np.ascontiguousarray(halves).view(np.uint16)
    return np.where(bits & 0x8000, bits ^ np.uint16(0xFFFF), bits ^ np.uint16(0x8000))


def halves_of_levels(levels: Levels) -> NDArray[np.float16]:
    """The inverse of `levels_of_halves`."""
    bits = np.where(levels & 0x8000, levels ^ np.uint16(0x8000), levels ^ np.uint16(0xFFFF))
    return bits.astype(np.uint16).view(np.float16)


def _rows(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """[K, d] of [K, d] or [K]; one entry of zeros where there is none."""
    rows = values[:, None] if values.ndim == 1 else values
    return rows if len(rows) else np.zeros((1, rows.shape[1]), np.float32)


def _checked(book: Codebook) -> Codebook:
    problem = book.problem()
    if problem is not None:
        raise UsageError(f"a codebook has {problem}")
    return book
