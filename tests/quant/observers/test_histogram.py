"""The streaming histogram: exact counts, whatever comes in which order and in how many pieces."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.quant.observers import Observer, StreamingHistogram

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
VALUES = arrays(np.float32, st.integers(1, 200), elements=FINITE)
Floats = NDArray[np.float32]


def filled(*parts: Floats, bins: int = 64) -> StreamingHistogram:
    histogram = StreamingHistogram(bins)
    for part in parts:
        histogram.add(part)
    return histogram


@settings(deadline=None, max_examples=150)
@given(VALUES)
def test_counts_are_those_of_numpy_over_the_same_edges(values: Floats) -> None:
    histogram = filled(values)
    edges = histogram.edges()
    # np.histogram closes its last bin on both sides; one more edge keeps ours half open.
    wider = np.append(edges, edges[-1] + histogram.width)
    expected, _ = np.histogram(values.astype(np.float64), wider)
    np.testing.assert_array_equal(histogram.counts, expected[:-1])
    assert expected[-1] == 0 and histogram.total == len(values)
    assert histogram.lowest == values.min() and histogram.highest == values.max()


@settings(deadline=None, max_examples=150)
@given(VALUES, st.randoms(use_true_random=False), st.integers(1, 5))
def test_order_and_pieces_do_not_matter(values: Floats, random: object, pieces: int) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = np.array_split(np.array(shuffled, np.float32), pieces)
    whole, pieced = filled(values), filled(*parts)
    assert (whole.width, whole.first) == (pieced.width, pieced.first)
    np.testing.assert_array_equal(whole.counts, pieced.counts)


def test_at_least_half_of_the_bins_are_used() -> None:
    rng = np.random.default_rng(3)
    for scale in 10 ** rng.uniform(-6, 6, 50):
        values = (rng.normal(size=1000) * scale).astype(np.float32)
        histogram = filled(values, bins=256)
        span = float(values.max()) - float(values.min())
        assert 127 * histogram.width <= span <= 256 * histogram.width


@pytest.mark.parametrize("value", [0.0, -0.0, 1e6, -1e-30, 3e38, 1e-45])
def test_one_value_again_and_again(value: float) -> None:
    values = np.full(10, value, np.float32)
    histogram = filled(values, values)
    assert histogram.counts.sum() == 20 and np.count_nonzero(histogram.counts) == 1
    assert histogram.lowest == histogram.highest == np.float32(value)


def test_zeros_first_and_then_the_largest_numbers() -> None:
    histogram = filled(np.zeros(5, np.float32), np.array([-3e38, 3e38], np.float32))
    assert histogram.counts.sum() == 7
    edges = histogram.edges()
    assert edges[0] <= -3e38 and edges[-1] > 3e38


def test_memory_does_not_grow() -> None:
    rng = np.random.default_rng(0)
    histogram = StreamingHistogram()
    sample = rng.normal(size=10_000).astype(np.float32)
    histogram.add(sample)
    tracemalloc.start()
    try:
        for scale in 1.01 ** np.arange(300):
            histogram.add(sample * np.float32(scale))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 64 * 1024  # the counts
    assert peak < 1024 * 1024  # and what one sample needs
    assert histogram.total == 301 * 10_000


@pytest.mark.parametrize(("bad", "kind"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_what_is_not_finite_is_named(bad: float, kind: str) -> None:
    observer = Observer("conv_3")
    values = np.ones((2, 3), np.float32)
    observer.observe(values, "a.jpg")
    values[1, 1] = bad
    expected = f"sample 'b.jpg' gives {kind} in tensor 'conv_3' \\(1 of 6 values"
    with pytest.raises(UsageError, match=expected):
        observer.observe(values, "b.jpg")
    assert observer.histogram.total == 6


@pytest.mark.parametrize("bins", [0, 1, 3, 100])
def test_bins_must_be_a_power_of_two(bins: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        StreamingHistogram(bins)
