"""Ranges next to what NumPy and SciPy make of all the values at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.quant.observers import (
    StreamingHistogram,
    entropy_range,
    minmax_range,
    percentile_range,
)
from penstock.quant.observers.entropy import LEVELS

Floats = NDArray[np.float32]
VALUES = arrays(np.float32, st.integers(1, 300), elements=st.floats(-(2.0**66), 2.0**66, width=32))


def filled(values: Floats, bins: int = 4096) -> StreamingHistogram:
    histogram = StreamingHistogram(bins)
    for part in np.array_split(values, 3):
        histogram.add(part)
    return histogram


@settings(deadline=None, max_examples=200)
@given(VALUES, st.floats(50.5, 100))
def test_percentiles_are_within_a_bin_of_numpys(values: Floats, percentile: float) -> None:
    histogram = filled(values, 256)
    made = percentile_range(histogram, percentile)
    real = values.astype(np.float64)
    tail = (100 - percentile) / 2
    for end, share in ((made.low, tail), (made.high, 100 - tail)):
        expected = np.percentile(real, share, method="inverted_cdf")
        # Rounding of the share may choose the neighbouring value, which may be far away.
        near = np.percentile(real, np.clip([share - 1e-9, share + 1e-9], 0, 100), method="lower")
        ends = [expected, *near]
        assert min(abs(end - value) for value in ends) <= 1.001 * histogram.width


@settings(deadline=None, max_examples=200)
@given(VALUES)
def test_symmetric_percentiles_are_those_of_magnitudes(values: Floats) -> None:
    histogram = filled(values, 1024)
    made = percentile_range(histogram, 90.05, symmetric=True)
    expected = np.percentile(np.abs(values).astype(np.float64), 90.05, method="inverted_cdf")
    coarse = max(histogram.width, float(np.abs(values).max()) / 512)
    assert made.low == -made.high
    assert abs(made.high - expected) <= 2.001 * coarse


@settings(deadline=None, max_examples=100)
@given(VALUES)
def test_all_ranges_lie_inside_of_what_was_seen(values: Floats) -> None:
    histogram = filled(values, 512)
    seen = minmax_range(histogram)
    assert (seen.low, seen.high) == (values.min(), values.max())
    percentile = percentile_range(histogram)
    assert seen.low <= percentile.low <= percentile.high <= seen.high
    entropy = entropy_range(histogram)
    assert min(seen.low, 0) <= entropy.low <= entropy.high <= max(seen.high, 0)
    assert percentile_range(histogram, 100) == seen
    for symmetric in (minmax_range(histogram, True), entropy_range(histogram, symmetric=True)):
        assert symmetric.low == -symmetric.high
        assert symmetric.high <= max(abs(seen.low), abs(seen.high))


def test_entropy_cuts_off_what_is_rare_and_far() -> None:
    rng = np.random.default_rng(1)
    body = rng.normal(size=200_000).astype(np.float32)
    values = np.append(body, np.array([60, -45], np.float32))
    made = entropy_range(filled(values))
    assert 3.5 < made.high < 12 and made.low == -made.high


def test_entropy_keeps_what_fits_the_levels() -> None:
    """256 values, evenly spread: nothing is lost by keeping all, so nothing is clipped."""
    values = np.tile(np.arange(256, dtype=np.float32), 100)
    made = entropy_range(filled(values))
    assert made.low == 0 and made.high == 255


def test_zeros_say_nothing() -> None:
    """However many zeros a ReLU makes, the range is that of the other values."""
    rng = np.random.default_rng(4)
    values = np.abs(rng.normal(size=50_000)).astype(np.float32)
    zeros = np.zeros(500_000, np.float32)
    assert entropy_range(filled(values)) == entropy_range(filled(np.append(values, zeros)))


def test_narrow_peaks_say_nothing() -> None:
    """Channels that hardly move fill a bin each; they must not decide what the others lose."""
    rng = np.random.default_rng(5)
    found = []
    for seed in (6, 7):  # other samples of the same tensor
        moving = np.random.default_rng(seed).exponential(size=50_000).astype(np.float32)
        still = np.repeat(rng.uniform(0.02, 0.6, 25).astype(np.float32), 1_000)
        alone = entropy_range(filled(moving)).high
        found.append(entropy_range(filled(np.append(moving, still))).high)
        assert found[-1] > 0.75 * alone
    assert max(found) < 1.5 * min(found)


@pytest.mark.parametrize("sign", [1, -1])
def test_values_of_one_sign_use_all_levels(sign: int) -> None:
    rng = np.random.default_rng(2)
    values = (sign * rng.exponential(size=100_000)).astype(np.float32)
    made = entropy_range(filled(values))
    near, far = sorted((made.low, made.high), key=abs)
    assert near == 0 and 4 < sign * far <= abs(values).max()


def test_entropy_finds_the_least_divergence_of_its_candidates() -> None:
    """The oracle is SciPy's entropy over a plain loop of the published method."""
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    rng = np.random.default_rng(7)
    values = np.abs(rng.standard_t(3, size=50_000)).astype(np.float32)
    histogram = filled(values, 2048)
    counts = histogram.counts[: np.flatnonzero(histogram.counts)[-1] + 1].astype(float)
    assert histogram.first == 0
    counts[0] = counts[1]  # zeros say nothing
    near = [counts[max(i - 8, 0) : i + 9] for i in range(len(counts))]
    medians = [np.median(some[some > 0]) if (some > 0).any() else 0 for some in near]
    counts = np.minimum(counts, medians)  # nor do narrow peaks

    def divergence(kept: int) -> float:
        inside = counts[:kept]
        p = inside.copy()
        p[-1] += counts[kept:].sum()
        q = np.zeros(kept)
        owner = [i * LEVELS // kept for i in range(kept)]
        for level in range(LEVELS):
            members = [i for i in range(kept) if owner[i] == level]
            some = [i for i in members if inside[i] > 0]
            for i in some:
                q[i] = sum(inside[j] for j in members) / len(some)
        return float(stats.entropy(p, np.maximum(q / q.sum(), 1e-9)))

    tried = np.unique(np.linspace(LEVELS, len(counts), 9).astype(int))
    scores = {int(kept): divergence(int(kept)) for kept in tried}
    chosen = round(entropy_range(histogram).high / histogram.width)
    assert divergence(chosen) <= min(scores.values()) + 1e-6


def test_nothing_seen_and_wrong_percentiles() -> None:
    with pytest.raises(UsageError, match="no values"):
        minmax_range(StreamingHistogram())
    with pytest.raises(UsageError, match="percentile is 50"):
        percentile_range(filled(np.ones(3, np.float32)), 50)
