"""Ranges from histograms: all values, or all but the rarest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.quant.observers.histogram import StreamingHistogram

PERCENTILE = 99.999


@dataclass(frozen=True)
class ValueRange:
    """Real numbers that a quantized tensor shall represent; those outside are clipped."""

    low: float
    high: float

    def symmetric(self) -> ValueRange:
        """Around zero, as wide as the wider side."""
        bound = max(abs(self.low), abs(self.high))
        return ValueRange(-bound, bound)


def minmax_range(histogram: StreamingHistogram, symmetric: bool = False) -> ValueRange:
    """From the least value to the greatest, exactly.

    Raises:
        UsageError: nothing was seen.
    """
    _check_filled(histogram)
    seen = ValueRange(histogram.lowest, histogram.highest)
    return seen.symmetric() if symmetric else seen


def percentile_range(
    histogram: StreamingHistogram, percentile: float = PERCENTILE, symmetric: bool = False
) -> ValueRange:
    """The middle `percentile` % of the values; half of the rest is clipped on either side.

    Symmetric: `percentile` % of the magnitudes. Each end is within one bin's width of what
    np.percentile gives for all the values (its `inverted_cdf`).

    Raises:
        UsageError: nothing was seen, or the percentile is not above 50 and at most 100.
    """
    _check_filled(histogram)
    if not 50 < percentile <= 100:
        raise UsageError(f"percentile is {percentile}, expected more than 50 and at most 100")
    if symmetric:
        counts, width = magnitudes(histogram)
        bound = _quantile(counts, 0, width, percentile / 100)
        bound = min(bound, minmax_range(histogram, symmetric=True).high)
        return ValueRange(-bound, bound)
    tail = (100 - percentile) / 200
    low, high = (
        _quantile(histogram.counts, histogram.first, histogram.width, share)
        for share in (tail, 1 - tail)
    )
    if not tail:
        return minmax_range(histogram)
    # Bins reach beyond the least and the greatest value that they hold.
    low, high = (min(max(end, histogram.lowest), histogram.highest) for end in (low, high))
    return ValueRange(low, high)


def magnitudes(histogram: StreamingHistogram) -> tuple[NDArray[np.int64], float]:
    """Counts of |value| from zero on, at most as many bins as the histogram has, and their width.

    Zero is an edge of the bins, so folding splits none. A value that lies on an edge below zero
    counts one bin too low.
    """
    filled = np.flatnonzero(histogram.counts)
    index = histogram.first + filled
    folded, width = np.where(index >= 0, index, -index - 1), histogram.width
    while folded.max() >= histogram.bins:  # all values lie far from zero
        folded, width = folded >> 1, width * 2
    counts = np.zeros(int(folded.max()) + 1, np.int64)
    np.add.at(counts, folded, histogram.counts[filled])
    return counts, width


def _quantile(counts: NDArray[np.int64], first: int, width: float, share: float) -> float:
    """The value that a share of the counted ones does not exceed; linear inside of a bin."""
    cumulative = np.cumsum(counts)
    wanted = share * cumulative[-1]
    place = int(np.searchsorted(cumulative, wanted, side="left"))
    place = min(place, int(np.flatnonzero(counts)[-1]))
    while counts[place] == 0:  # wanted 0: before the first value
        place += 1
    inside = (wanted - (cumulative[place] - counts[place])) / counts[place]
    return float(first + place + min(max(inside, 0.0), 1.0)) * width


def _check_filled(histogram: StreamingHistogram) -> None:
    if not histogram.total:
        raise UsageError("calibration saw no values; give at least one sample")
