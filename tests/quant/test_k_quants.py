"""K-quants: errors next to llama.cpp's own quantizers, exact layout, clear refusals."""

from __future__ import annotations

import ctypes
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.errors import FormatError, UsageError
from penstock.quant.blocks import decode_rows
from penstock.quant.k_quants import (
    AFFINE_LIMIT,
    K_FORMATS,
    SYMMETRIC_LIMIT,
    encode_q4_k,
    encode_q5_k,
    encode_q6_k,
)
from penstock.runtime.embedded import embedded_model
from tests.quant.ggml_reference import encode_with_ggml, ggml_library

Floats = NDArray[np.float32]
ENCODERS = {"Q4_K": encode_q4_k, "Q5_K": encode_q5_k, "Q6_K": encode_q6_k}
NAMES = sorted(ENCODERS)
LIMITS = {"Q4_K": AFFINE_LIMIT, "Q5_K": AFFINE_LIMIT, "Q6_K": SYMMETRIC_LIMIT}
# Of a block's largest magnitude, if all of its values are used: a step of the widest grid, since
# the least squares cut the outermost values off, and what rounding of scales and minimums adds.
STEPS = {"Q4_K": 2 / 15 + 0.03, "Q5_K": 2 / 31 + 0.03, "Q6_K": 1 / 31 + 0.01}

Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
TENSORS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape) * 0.02,
    "heavy tails": lambda rng, shape: rng.standard_t(2, size=shape),
    "very heavy tails": lambda rng, shape: np.clip(rng.standard_t(1, size=shape), -1e5, 1e5),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, size=shape),
    "positive": lambda rng, shape: rng.uniform(1, 2, size=shape),
    "negative": lambda rng, shape: rng.uniform(-2, -1, size=shape),
    "sparse": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.1),
    "outlier columns": lambda rng, shape: (
        rng.normal(size=shape) * np.where(rng.random(shape[1]) < 0.02, 30, 1)
    ),
    "rows of other sizes": lambda rng, shape: (
        rng.normal(size=shape) * 10 ** rng.uniform(-4, 4, size=(shape[0], 1))
    ),
    "far from zero": lambda rng, shape: (
        rng.normal(size=shape) * 0.01
        + np.repeat(rng.normal(size=(shape[0], shape[1] // 32)), 32, 1)
    ),
}
WEIGHTS: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]] | None] = {
    "none": None,
    "even": lambda rng, columns: rng.uniform(0.5, 1.5, size=columns),
    "squares": lambda rng, columns: rng.chisquare(1, size=columns),
    "uneven": lambda rng, columns: 10 ** rng.uniform(-4, 1, size=columns),
    "mostly zero": lambda rng, columns: rng.random(columns) * (rng.random(columns) < 0.2),
}


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    return ggml_library()


def squared_error(
    name: str, data: NDArray[np.uint8], values: Floats, weights: Floats | None
) -> float:
    difference = decode_rows(data, K_FORMATS[name]).astype(np.float64) - values
    heavy = 1.0 if weights is None else weights.astype(np.float64)
    return float((heavy * difference**2).sum())


def drawn(
    tensor: str, weighting: str, seed: int, shape: tuple[int, int] = (16, 2048)
) -> tuple[Floats, Floats | None]:
    rng = np.random.default_rng(seed)
    values = TENSORS[tensor](rng, shape).astype(np.float32)
    draw = WEIGHTS[weighting]
    return values, None if draw is None else draw(rng, shape[1]).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30, derandomize=True)  # sums, not each block, are less
@given(
    tensor=st.sampled_from(sorted(TENSORS)),
    weighting=st.sampled_from(sorted(WEIGHTS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_error_is_no_greater_than_llama_cpp_s(
    ggml: ctypes.CDLL, name: str, tensor: str, weighting: str, seed: int
) -> None:
    values, weights = drawn(tensor, weighting, seed, (4, 1024))
    ours = squared_error(name, ENCODERS[name](values, weights), values, weights)
    reference = encode_with_ggml(ggml, values, weights, K_FORMATS[name])
    assert ours <= squared_error(name, reference, values, weights)


@pytest.mark.parametrize(
    ("name", "tensor", "weighting", "seed"),
    [
        # Scales that are short by a little where no minimum can make up for it.
        ("Q4_K", "far from zero", "even", 1005),
        ("Q5_K", "far from zero", "uneven", 1011),
        ("Q5_K", "far from zero", "uneven", 1020),
        # One sub-block that is wide for values without weight.
        ("Q4_K", "very heavy tails", "mostly zero", 1005),
    ],
)
def test_blocks_that_were_once_worse(
    ggml: ctypes.CDLL, name: str, tensor: str, weighting: str, seed: int
) -> None:
    values, weights = drawn(tensor, weighting, seed, (4, 1024))
    ours = squared_error(name, ENCODERS[name](values, weights), values, weights)
    reference = encode_with_ggml(ggml, values, weights, K_FORMATS[name])
    assert ours <= squared_error(name, reference, values, weights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighting", ["none", "squares"])
def test_the_error_is_clearly_less_on_large_tensors(
    ggml: ctypes.CDLL, name: str, weighting: str
) -> None:
    rng = np.random.default_rng(5)
    values = (rng.normal(size=(64, 2048)) * 0.02).astype(np.float32)
    draw = WEIGHTS[weighting]
    weights = None if draw is None else draw(rng, 2048).astype(np.float32)
    ours = squared_error(name, ENCODERS[name](values, weights), values, weights)
    reference = encode_with_ggml(ggml, values, weights, K_FORMATS[name])
    assert ours < 0.97 * squared_error(name, reference, values, weights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighting", ["none", "squares"])
def test_the_error_is_no_greater_on_each_trained_tensor(
    ggml: ctypes.CDLL, name: str, weighting: str
) -> None:
    draw = WEIGHTS[weighting]
    weights = None
    if draw is not None:
        weights = draw(np.random.default_rng(7), 256).astype(np.float32)
    tensors = [t for t in GGUFReader(embedded_model()).tensors if t.shape.tolist() == [256, 256]]
    assert len(tensors) == 12
    for tensor in tensors:
        values = tensor.data.astype(np.float32)
        ours = squared_error(name, ENCODERS[name](values, weights), values, weights)
        reference = encode_with_ggml(ggml, values, weights, K_FORMATS[name])
        assert ours <= squared_error(name, reference, values, weights), tensor.name


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-20, 6),
    columns=st.sampled_from([256, 512, 768]),
)
def test_a_round_trip_is_within_a_step(name: str, seed: int, exponent: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.uniform(-1, 1, size=(3, columns)) * 10.0**exponent).astype(np.float32)
    data = ENCODERS[name](values)
    assert data.shape == (3, K_FORMATS[name].row_bytes(columns)) and data.dtype == np.uint8
    error = np.abs(decode_rows(data, K_FORMATS[name]) - values).max()
    # Scales are float16: below 6e-8 there are no steps.
    assert error <= STEPS[name] * 10.0**exponent + 4 * 2.0**-24


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=20)
@given(
    tensor=st.sampled_from(sorted(TENSORS)),
    weighting=st.sampled_from(["none", "squares"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_encoded_on_their_own(name: str, tensor: str, weighting: str, seed: int) -> None:
    values, weights = drawn(tensor, weighting, seed)
    whole = ENCODERS[name](values, weights)
    for row in range(len(values)):
        assert (ENCODERS[name](values[row : row + 1], weights)[0] == whole[row]).all()


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_columns_are_weights_of_every_row(name: str) -> None:
    values, weights = drawn("normal", "squares", 1)
    assert weights is not None
    each = np.broadcast_to(weights, values.shape)
    of_columns = ENCODERS[name](values, weights)
    assert (ENCODERS[name](values, each) == of_columns).all()
    # Only their ratio within a super-block counts, also where it is at the end of the range.
    for factor in (2.0**-100, 2.0**100):
        assert (ENCODERS[name](values, weights * np.float32(factor)) == of_columns).all()


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_elements_decide_where_the_error_is(name: str) -> None:
    values, _ = drawn("normal", "none", 2)
    weights = np.random.default_rng(3).chisquare(1, size=values.shape).astype(np.float32)
    weighted, plain = ENCODERS[name](values, weights), ENCODERS[name](values)
    assert squared_error(name, weighted, values, weights) < squared_error(
        name, plain, values, weights
    )
    assert squared_error(name, plain, values, None) < squared_error(name, weighted, values, None)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_all_zero_count_as_even(name: str) -> None:
    values, _ = drawn("normal", "none", 4)
    weights = np.ones(2048, np.float32)
    even = ENCODERS[name](values, weights)
    weights[256:512] = 0
    assert (ENCODERS[name](values, weights) == even).all()
    weights[512:544] = 0  # sub-blocks alone
    error = np.abs(decode_rows(ENCODERS[name](values, weights), K_FORMATS[name]) - values)
    assert error.max() < 0.1 * np.abs(values).max()


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_what_is_too_small_are_zeros(name: str) -> None:
    for value in (0.0, -0.0, 1e-45, -1e-40, 2.0**-25, -(2.0**-26)):
        values = np.full((2, 512), value, np.float32)
        assert not decode_rows(ENCODERS[name](values), K_FORMATS[name]).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_float16_is_better_than_none(name: str) -> None:
    values = np.full((1, 256), 2.0**-24, np.float32)
    values[0, ::2] = 0
    assert (decode_rows(ENCODERS[name](values), K_FORMATS[name]) == values).all()


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=50)
@given(value=st.floats(-1e6, 1e6, width=32))
def test_constant_blocks_are_within_float16(name: str, value: float) -> None:
    """Half a step of the block's float16 scale: relative, and below 2**-14, where steps are equal,
    times the largest count that multiplies it."""
    largest = {"Q4_K": 63 * 15, "Q5_K": 63 * 31, "Q6_K": 128 * 32}[name]
    values = np.full((1, 256), value, np.float32)
    decoded = decode_rows(ENCODERS[name](values), K_FORMATS[name])
    assert np.abs(decoded - values).max() <= 2.0**-11 * abs(value) + 2.0**-25 * largest


@pytest.mark.parametrize("name", NAMES)
def test_subnormals_beside_ordinary_values_do_no_harm(name: str) -> None:
    values, weights = drawn("normal", "squares", 6)
    with_zeros = values.copy()
    with_zeros[:, ::3] = 0
    values[:, ::3] = 1e-42
    assert (ENCODERS[name](values, weights) == ENCODERS[name](with_zeros, weights)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_values_do_not_become_infinite(name: str) -> None:
    limit = LIMITS[name]
    signs = np.random.default_rng(0).choice([-1, 1], size=(4, 256))
    signs[0], signs[1] = 1, -1
    values = (signs * limit).astype(np.float32)
    decoded = decode_rows(ENCODERS[name](values), K_FORMATS[name])
    assert np.abs(decoded / values - 1).max() < 0.01
    values[2, 17] = np.nextafter(np.float32(limit), np.float32(np.inf))
    with pytest.raises(FormatError, match=f"row 2, column 17: .* {name} holds.* store this tensor"):
        ENCODERS[name](values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_row(name: str, value: float) -> None:
    values = np.zeros((300, 512), np.float32)
    values[205, 300] = value
    with pytest.raises(FormatError, match="row 205, column 300: a weight is .*check its source"):
        ENCODERS[name](values)
    weights = np.ones((300, 512), np.float32)
    weights[7, 9] = value
    with pytest.raises(UsageError, match="row 7, column 9: an importance weight"):
        ENCODERS[name](np.zeros((300, 512), np.float32), weights)


def test_shapes_that_do_not_fit_are_refused() -> None:
    values = np.zeros((2, 512), np.float32)
    with pytest.raises(UsageError, match="a row of 300 elements cannot be Q5_K.*256"):
        encode_q5_k(np.zeros((2, 300), np.float32))
    with pytest.raises(UsageError, match=r"\(512,\); expected \(rows, columns\)"):
        encode_q4_k(values[0])
    with pytest.raises(UsageError, match=r"shape \(2,\); expected \(512,\).*\(2, 512\)"):
        encode_q6_k(values, np.ones(2, np.float32))
    with pytest.raises(UsageError, match="row 0, column 3: an importance weight is -1"):
        encode_q4_k(values, np.where(np.arange(512) == 3, -1, 1).astype(np.float32))
    assert encode_q4_k(values[:0]).shape == (0, 288)


@pytest.mark.parametrize("name", NAMES)
def test_temporary_memory_does_not_grow_with_the_tensor(name: str) -> None:
    values = np.ones((2048, 1024), np.float32)
    tracemalloc.start()
    ENCODERS[name](values, np.ones(1024, np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20 + len(values) * K_FORMATS[name].row_bytes(1024)
