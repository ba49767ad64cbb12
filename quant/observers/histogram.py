"""A histogram of fixed size over a range that is not known before the last value was seen.

A bin is `[i * width, (i + 1) * width)` for an integer i, and the width is a power of two. When a
value falls outside, the width doubles until all fits: two neighbours, 2j and 2j + 1, become the bin
j. So no count is ever split between bins, and what was seen in which order, or in how many pieces,
does not matter: the same values give the same histogram. (Histogram calibrators that keep the
width and add bins, or that keep the values, grow with the samples.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""Of them at least half are used; 32 KiB a tensor."""

_MANTISSA = 40  # bits: bins of one value are this much finer than the value


class StreamingHistogram:
    """Counts of values; see the module.

    Attributes:
        bins: at most; a power of two.
        width: of a bin.
        first: the first bin is `[first * width, (first + 1) * width)`.
        counts: int64, `bins` of them; those behind the greatest value are 0.
        total: values seen.
        lowest, highest: exact, as float64; nan before the first value.
    """

    def __init__(self, bins: int = BINS) -> None:
        if bins < 2 or bins & (bins - 1):
            raise ValueError(f"bins is {bins}, expected a power of two of at least 2")
        self.bins = bins
        self.width = math.nan
        self.first = 0
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)
        self.total = 0
        self.lowest = self.highest = math.nan

    def add(self, values: NDArray[Any]) -> None:
        """Count values of any shape; they must be finite."""
        if values.size == 0:
            return
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("a histogram counts finite values only")
        if self.total:
            low, high = min(low, self.lowest), max(high, self.highest)
        self._widen(low, high)
        # Dividing by a power of two is exact, in float32 too where it makes numbers no smaller.
        narrow = flat.dtype == np.float32 and 1e-30 < self.width <= 1
        scaled = flat / np.float32(self.width) if narrow else flat.astype(np.float64) / self.width
        index = np.floor(scaled, out=scaled).astype(np.int64) - self.first
        self.counts += np.bincount(index, minlength=self.bins)
        self.total += flat.size
        self.lowest, self.highest = low, high

    def edges(self) -> NDArray[np.float64]:
        """Of the bins, float64, bins + 1 of them."""
        return np.asarray((self.first + np.arange(self.bins + 1)) * self.width, np.float64)

    def _widen(self, low: float, high: float) -> None:
        """Make bins wide enough, and move the first one, for [low, high]."""
        width = _least_width(low, high, self.bins)
        if not self.total:
            self.width, self.first = width, math.floor(low / width)
            return
        width = max(width, self.width)
        first = math.floor(low / width)
        if width == self.width and first == self.first:
            return
        doublings = math.frexp(width)[1] - math.frexp(self.width)[1]
        filled = np.flatnonzero(self.counts)
        target = ((self.first + filled) >> min(doublings, 62)) - first
        moved = np.bincount(target, weights=self.counts[filled], minlength=self.bins)
        self.counts = moved.astype(np.int64)  # exact: counts stay far below 2**53
        self.width, self.first = width, first


def _least_width(low: float, high: float, bins: int) -> float:
    """The least power of two of which `bins` in a row reach from `low` to `high`."""
    magnitude = max(abs(low), abs(high))
    if magnitude == 0:
        return 2.0**-1000
    finest = math.frexp(magnitude)[1] - _MANTISSA
    span = high - low
    exponent = max(finest, math.frexp(span / bins)[1] - 1) if span > 0 else finest
    exponent = max(exponent, -1000)
    while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= bins:
        exponent += 1
    return 2.0**exponent
