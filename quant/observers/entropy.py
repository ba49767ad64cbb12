"""The range whose quantized distribution tells least apart from the real one.

The method of TensorRT (S. Migacz, "8-bit inference with TensorRT", GTC 2017): try thresholds; put
what lies outside into the outermost bins; quantize what lies inside to as many levels as the
number format has; keep the threshold of the least Kullback-Leibler divergence. Zeros and narrow
peaks are left out of it, as every range represents them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.quant.observers.histogram import StreamingHistogram
from penstock.quant.observers.ranges import ValueRange, magnitudes, minmax_range

LEVELS = 256
CANDIDATES = 128
_BINS = 2048  # of the histogram that is searched, at the most
_REACH = 8  # bins on either side that say whether one is a peak


def entropy_range(
    histogram: StreamingHistogram, levels: int = LEVELS, symmetric: bool = False
) -> ValueRange:
    """Zero lies inside. Where values of both signs were seen, both sides get one threshold, and the
    range ends where the values do.

    Args:
        levels: of the number format: 256 for int8.
        symmetric: around zero, also where all values have one sign.

    Raises:
        UsageError: nothing was seen.
    """
    seen = minmax_range(histogram)
    counts, width = _coarser(*magnitudes(histogram))
    one_sided = (seen.low >= 0 or seen.high <= 0) and not symmetric
    threshold = width * _best(counts, levels if one_sided else levels // 2)
    if symmetric:
        threshold = min(threshold, seen.symmetric().high)
        return ValueRange(-threshold, threshold)
    return ValueRange(max(min(seen.low, 0.0), -threshold), min(max(seen.high, 0.0), threshold))


def _coarser(counts: NDArray[np.int64], width: float) -> tuple[NDArray[np.float64], float]:
    while len(counts) > _BINS:
        counts = np.add.reduceat(counts, np.arange(0, len(counts), 2))
        width *= 2
    smooth = counts.astype(np.float64)
    if len(smooth) > 1:
        # Zeros, half of all values behind a ReLU, are exact in every range: they say nothing of
        # which is best, and would outweigh what does.
        smooth[0] = smooth[1]
    return _without_peaks(smooth), width


def _without_peaks(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """No bin higher than the median of the filled ones around it.

    A channel that hardly moves puts all its values into one bin. Any range represents them within
    half a step; but a level of several bins spreads them over all of these, which counts as a
    divergence: far more than what clipping costs, and more or less as borders of levels happen to
    fall. Ranges came out at a fifth of the values, and other ones for other samples.
    """
    filled = np.where(counts > 0, counts, np.nan)
    padded = np.pad(filled, _REACH, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * _REACH + 1)
    some = counts > 0  # each of them has itself around it
    capped = counts.copy()
    capped[some] = np.minimum(counts[some], np.nanmedian(around[some], axis=1))
    return capped


def _best(counts: NDArray[np.float64], levels: int) -> int:
    """How many bins, from zero on, to keep. Ties go to the wider range."""
    if len(counts) <= levels:
        return len(counts)
    tried = np.unique(np.linspace(levels, len(counts), CANDIDATES).astype(int))
    divergences = [_divergence(counts, int(kept), levels) for kept in tried]
    return int(tried[len(tried) - 1 - int(np.argmin(divergences[::-1]))])


def _divergence(counts: NDArray[np.float64], kept: int, levels: int) -> float:
    """KL(real || quantized) in nats, when the bins from `kept` on are clipped."""
    inside = counts[:kept]
    real = inside.copy()
    real[-1] += counts[kept:].sum()
    # A level is a run of bins; what it holds is spread evenly over those of them that have any.
    level = np.arange(kept) * levels // kept
    filled = inside > 0
    mass = np.bincount(level, weights=inside, minlength=levels)
    spread = np.bincount(level, weights=filled, minlength=levels)
    quantized = np.where(filled, mass[level] / np.maximum(spread[level], 1), 0.0)
    if quantized.sum() == 0:
        return np.inf
    p, q = real / real.sum(), quantized / quantized.sum()
    some = p > 0
    # Where only clipped values fall into an empty last bin, q has nothing: a small mass instead
    # of an infinite divergence, which would forbid the threshold whatever else speaks for it.
    q = np.maximum(q, 1e-9)
    return float(np.sum(p[some] * np.log(p[some] / q[some])))
