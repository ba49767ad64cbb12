"""Rounding with error feedback: never far from the nearest level, better on correlated inputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.quant.error_feedback import BLOCK, quantize_rows

TOP = {4: 7, 8: 127}


def correlated(columns: int, seed: int, samples: int = 4096) -> NDArray[np.float64]:
    """Inputs that share a few directions, as activations do: (samples, columns)."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((max(columns // 4, 1), columns))
    return rng.standard_normal((samples, len(mixing))) @ mixing + 0.2 * rng.standard_normal(
        (samples, columns)
    )


def output_error(
    rows: NDArray[np.float32],
    scales: NDArray[np.float32],
    levels: NDArray[np.int8],
    inputs: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Mean square of what rounding adds to each channel's output."""
    wrong = inputs @ (rows - scales[:, None] * levels).T.astype(np.float64)
    found: NDArray[np.float64] = (wrong**2).mean(axis=0)
    return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [9, 48, 2 * BLOCK + 5])
def test_feedback_halves_the_error_of_outputs(bits: int, columns: int) -> None:
    rng = np.random.default_rng(columns)
    rows = rng.standard_normal((32, columns)).astype(np.float32)
    inputs = correlated(columns, seed=bits)
    moments = inputs.T @ inputs / len(inputs)
    held_out = correlated(columns, seed=bits)[::2]
    nearest = output_error(rows, *quantize_rows(rows, bits), held_out)
    fed_back = output_error(rows, *quantize_rows(rows, bits, moments), held_out)
    assert fed_back.sum() < 0.5 * nearest.sum()


@pytest.mark.parametrize("bits", [4, 8])
@given(seed=st.integers(0, 2**32 - 1), channels=st.integers(1, 5), columns=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_rounding_to_nearest_errs_by_half_a_step(
    bits: int, seed: int, channels: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((channels, columns)) * 10.0 ** rng.integers(-6, 6)).astype("f4")
    scales, levels = quantize_rows(rows, bits)
    assert levels.dtype == np.int8 and np.abs(levels).max() == TOP[bits]
    assert (np.abs(rows - scales[:, None] * levels) <= scales[:, None] * 0.5000001).all()


def test_white_inputs_leave_nothing_to_feed_back() -> None:
    rows = np.random.default_rng(0).standard_normal((6, 100)).astype(np.float32)
    white = np.eye(100) * 3.0
    for plain, fed in zip(quantize_rows(rows, 4), quantize_rows(rows, 4, white), strict=True):
        np.testing.assert_array_equal(plain, fed)


def test_blocks_compute_what_one_column_after_another_does() -> None:
    """The published algorithm, written plainly: no blocks, the inverse taken anew each time."""
    columns = BLOCK + 9
    rows = np.random.default_rng(1).standard_normal((5, columns)).astype(np.float32)
    inputs = correlated(columns, seed=1)
    moments = inputs.T @ inputs / len(inputs)
    scales, levels = quantize_rows(rows, 4, moments)
    damped = moments + 0.01 * np.diag(moments).mean() * np.eye(columns)
    left, expected = rows.astype(np.float64), np.zeros(rows.shape, np.int8)
    for column in range(columns):
        inverse = np.linalg.inv(damped[column:, column:])
        level = np.clip(np.rint(left[:, column] / scales), -7, 7)
        expected[:, column] = level
        error = (left[:, column] - level * scales) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0]
    assert (levels == expected).mean() > 0.99  # ties may fall either way


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_what_was_rounded_changes_nothing(bits: int) -> None:
    rows = np.random.default_rng(2).standard_normal((40, 70)).astype(np.float32)
    inputs = correlated(70, seed=2)
    moments = inputs.T @ inputs / len(inputs)
    scales, levels = quantize_rows(rows, bits, moments, keep_largest=True)
    again = quantize_rows(scales[:, None] * levels, bits)
    np.testing.assert_allclose(again[0], scales, rtol=1e-6)
    np.testing.assert_array_equal(again[1], levels)


def test_near_the_best_of_all_roundings() -> None:
    """Of three weights every choice of levels can be tried."""
    worse = []
    for seed in range(20):
        inputs = correlated(3, seed)
        moments = inputs.T @ inputs / len(inputs)
        rows = np.random.default_rng(seed).standard_normal((1, 3)).astype(np.float32)
        scales, levels = quantize_rows(rows, 4, moments)
        tried = np.array(list(itertools.product(range(-7, 8), repeat=3)))
        errors = rows - scales[0] * tried
        best = np.einsum("ni,ij,nj->n", errors, moments, errors).min()
        ours = output_error(rows, scales, levels, inputs)[0]
        worse.append(ours / best)
    assert np.median(worse) < 2.0


def test_each_channel_may_have_its_own_moments() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((4, 9)).astype(np.float32)
    inputs = [correlated(9, seed) for seed in range(4)]
    moments = np.stack([x.T @ x / len(x) for x in inputs])
    _, levels = quantize_rows(rows, 4, moments)
    for channel in range(4):
        _, alone = quantize_rows(rows[channel : channel + 1], 4, moments[channel])
        np.testing.assert_array_equal(levels[channel], alone[0])


def test_channels_of_zeros_and_inputs_that_are_always_zero() -> None:
    rows = np.zeros((3, 8), np.float32)
    rows[1] = np.arange(8)
    moments = np.zeros((8, 8))
    moments[0, 0] = 1.0
    for given_moments in (None, moments, np.zeros((8, 8))):
        scales, levels = quantize_rows(rows, 8, given_moments)
        assert (scales > 0).all() and np.isfinite(scales).all()
        assert not levels[0].any() and levels[1, 7] == 127


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_refused(bad: float) -> None:
    rows = np.ones((2, 4), np.float32)
    with pytest.raises(UsageError, match="3 bits"):
        quantize_rows(rows, 3)
    with pytest.raises(UsageError, match="second moments of shape"):
        quantize_rows(rows, 4, np.eye(5))
    rows[1, 2] = bad
    with pytest.raises(UsageError, match="finite"):
        quantize_rows(rows, 4)
