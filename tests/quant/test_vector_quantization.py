"""Codebooks: exact where they can be, near the best that is known, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.errors import UsageError
from penstock.quant.vector_quantization import (
    BookPlan,
    Quantized,
    codes_within,
    nearest,
    quantize,
    quantize_columns,
)

VECTORS = arrays(
    np.float32,
    st.tuples(st.integers(0, 60), st.integers(1, 4)),
    elements=st.floats(-100, 100, width=16),
)


def squared_error(vectors: np.ndarray, found: Quantized) -> float:
    return float(np.square(vectors.astype(np.float64) - found.decode()).sum(axis=1).mean())


@settings(deadline=None, max_examples=80)
@given(vectors=VECTORS, codes=st.integers(1, 80))
def test_indices_are_of_the_nearest_code_and_every_code_is_used(
    vectors: np.ndarray, codes: int
) -> None:
    found = quantize(vectors, codes)
    assert found.codebook.shape[1] == vectors.shape[1]
    assert len(found.codebook) <= min(codes, max(len(vectors), 1))
    assert found.indices.shape == (len(vectors),)
    assert set(found.indices.tolist()) == set(range(len(found.codebook)))
    book = found.codebook.astype(np.float64)
    difference = vectors.astype(np.float64)[:, None] - book  # (n, k, d)
    squares = np.square(difference).sum(axis=2)
    chosen = squares[np.arange(len(vectors)), found.indices]
    best = squares.min(axis=1, initial=np.inf)
    assert (chosen <= best * (1 + 1e-4) + 0.05).all()


@settings(deadline=None, max_examples=60)
@given(vectors=VECTORS)
def test_few_distinct_values_lose_nothing(vectors: np.ndarray) -> None:
    distinct = len(np.unique(vectors + 0, axis=0))
    found = quantize(vectors, max(distinct, 1))
    assert len(found.codebook) == distinct
    assert (found.decode() == vectors).all()


def test_the_order_of_the_codes() -> None:
    rng = np.random.default_rng(0)
    one = quantize(rng.normal(size=(5000, 1)).astype(np.float32), 64)
    assert (np.diff(one.codebook[:, 0].astype(np.float32)) > 0).all()
    two = quantize(rng.normal(size=(5000, 2)).astype(np.float32), 64)
    assert (np.diff(np.bincount(two.indices)) <= 0).all()
    assert 32 < min(len(one.codebook), len(two.codebook)) <= 64


def test_a_column_comes_near_the_best_quantizer_of_a_normal_distribution() -> None:
    """Max (1960): 16 levels of a standard normal leave a mean squared error of 0.01154, 32 of
    0.00349."""
    x = np.random.default_rng(1).normal(size=(200_000, 1)).astype(np.float32)
    assert squared_error(x, quantize(x, 16)) < 1.05 * 0.01154
    assert squared_error(x, quantize(x, 32)) < 1.05 * 0.00349


def test_a_column_far_from_zero_keeps_its_precision() -> None:
    x = (20 + np.random.default_rng(2).random((20_000, 1))).astype(np.float32)
    found = quantize(x, 40)
    # 40 even steps leave (1/40)^2 / 12; codes are float16, whose step is 1/64 there.
    assert squared_error(x, found) < (1 / 40) ** 2 / 12 + (1 / 64) ** 2 / 12 * 2


def test_mostly_one_value_does_not_hide_the_others() -> None:
    rng = np.random.default_rng(3)
    x = np.zeros((50_000, 1), np.float32)
    x[:500, 0] = rng.random(500) * 8
    found = quantize(x, 64)
    assert np.square(x[:500] - found.decode()[:500]).mean() < (8 / 20) ** 2 / 12
    assert np.abs(found.decode()[500:]).max() < 1e-3


def test_clusters_are_found() -> None:
    rng = np.random.default_rng(4)
    middles = rng.normal(size=(40, 5)).astype(np.float32) * 10
    x = middles[rng.integers(0, 40, 8000)] + rng.normal(size=(8000, 5)).astype(np.float32) * 0.01
    found = quantize(x.astype(np.float32), 64, rounds=20)
    assert squared_error(x, found) < 5 * 0.01**2 * 4


def test_mini_batches_come_near_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(5).normal(size=(30_000, 3)).astype(np.float32)
    whole = squared_error(x, quantize(x, 256))
    monkeypatch.setattr("penstock.quant.vector_quantization.LEAST_BATCH", 4096)
    assert squared_error(x, quantize(x, 256)) < 1.1 * whole


def test_weights_say_what_counts() -> None:
    x = np.random.default_rng(6).random((20_000, 2)).astype(np.float32)
    left = x[:, 0] < 0.5
    weights = np.where(left, 1.0, 1e-3)
    plain, weighted = quantize(x, 64), quantize(x, 64, weights=weights)
    error = [
        np.square(x[left] - found.decode()[left]).sum(axis=1).mean() for found in (plain, weighted)
    ]
    assert error[1] < 0.7 * error[0]
    same = quantize(x, 64, weights=np.full(len(x), 7.0))
    assert squared_error(x, same) == pytest.approx(squared_error(x, plain), rel=0.05)


def test_the_same_seed_gives_the_same_codes() -> None:
    x = np.random.default_rng(7).normal(size=(40_000, 2)).astype(np.float32)
    a, b = quantize(x, 100, seed=3), quantize(x, 100, seed=3)
    assert (a.codebook == b.codebook).all() and (a.indices == b.indices).all()


def test_columns_are_cut_as_planned() -> None:
    x = np.random.default_rng(8).normal(size=(3000, 4)).astype(np.float32)
    books = quantize_columns(x, [BookPlan(1, 8), BookPlan(3, 32)])
    assert [book.codebook.shape for book in books] == [(8, 1), (32, 3)]
    with pytest.raises(UsageError, match=r"\[1, 2\] columns.*\(3000, 4\)"):
        quantize_columns(x, [BookPlan(1, 8), BookPlan(2, 32)])


def test_codebooks_are_no_larger_than_they_are_worth() -> None:
    assert codes_within(1 << 13, 1_000_000, 2, 0.25) == 1 << 13
    assert codes_within(1 << 13, 20_000, 2, 0.25) == 1250
    assert codes_within(1 << 13, 10, 45, 0.25) == 16
    assert codes_within(4, 10, 45, 0.25) == 4


def test_nearest_takes_the_first_of_equals() -> None:
    for width in (1, 2):
        book = np.array([3.0, 1.0, 3.0, 1.0], np.float32)[:, None].repeat(width, 1)
        x = np.array([1.1, 2.9], np.float32)[:, None].repeat(width, 1)
        indices, squares = nearest(x, book)
        assert indices.tolist() == [1, 0]
        assert squares == pytest.approx([0.01 * width] * 2, rel=1e-3)


@pytest.mark.parametrize(
    ("vectors", "codes", "weights", "message"),
    [
        (np.zeros((3, 0), np.float32), 4, None, "d of 1 or more"),
        (np.zeros(3, np.float32), 4, None, "d of 1 or more"),
        (np.zeros((3, 1), np.float32), 0, None, "0 codes"),
        (np.zeros((3, 1), np.float32), 1 << 17, None, "131072 codes"),
        (np.array([[0], [np.nan]], np.float32), 4, None, "vector 1 .*not finite"),
        (np.array([[1e5]], np.float32), 4, None, "vector 0"),
        (np.zeros((3, 1), np.float32), 4, np.ones(2), "weights have shape"),
        (np.zeros((3, 1), np.float32), 4, np.array([1, -1, 1]), "0 or more"),
        (np.zeros((3, 1), np.float32), 4, np.array([1, np.inf, 1]), "finite"),
    ],
)
def test_what_cannot_be_is_refused(
    vectors: np.ndarray, codes: int, weights: np.ndarray | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        quantize(vectors, codes, weights=weights)


def test_no_vectors_and_no_weight() -> None:
    empty = quantize(np.zeros((0, 3), np.float32), 16)
    assert empty.decode().shape == (0, 3)
    unweighted = quantize(np.eye(3, dtype=np.float32), 2, weights=np.zeros(3))
    assert len(unweighted.codebook) == 2
