"""The kernels against the gguf package's own quantization, for every set that runs here.

native/tests/test_kernels.cpp compares the sets with each other, at more sizes; here it is the
formats that are checked, with an oracle from outside the project.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock import _native

F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
TYPES = [F32, F16, Q4_0, Q8_0]
SIZES = {F32: [1, 3, 17, 129, 4096], F16: [1, 3, 17, 129, 4096]}
SIZES |= {Q4_0: [32, 96, 288, 4096], Q8_0: [32, 96, 288, 4096]}
CASES = [(type_, n) for type_ in TYPES for n in SIZES[type_]]

# |dot - exact| as a part of sum |w x|: F32 and F16 round in float only, and so do the block formats
# once x is the one that the kernels see, in int8.
TOLERANCE = 1e-5
# Against the float x: its step is a 254th of the largest of 32, so each of its elements is off by
# up to that part of the largest. Relative to sum |w| max |x|.
TOLERANCE_QUANTIZED = 1 / 254 + 1e-5

Floats = NDArray[np.float32]
Row = NDArray[np.uint8]


@pytest.fixture(params=_native.kernels_available())
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.kernels_name()
    _native.kernels_select(request.param)
    yield request.param
    _native.kernels_select(before)


def make_row(rng: np.random.Generator, type_: int, n: int) -> tuple[Row, Floats]:
    """A row as stored, and what gguf reads in it."""
    weights = rng.normal(0, 0.1, n).astype(np.float32)
    if type_ == F32:
        return weights.view(np.uint8), weights
    row = np.ascontiguousarray(quantize(weights, GGMLQuantizationType(type_))).view(np.uint8)
    return row, np.asarray(dequantize(row, GGMLQuantizationType(type_)), np.float32).reshape(n)


def int8_blocks(x: Floats) -> NDArray[np.float64]:
    """x as the block formats see it: int8 by blocks of 32, rounded half to even."""
    blocks = x.reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 1e-30)
    seen: NDArray[np.float64] = np.rint(blocks * inverse).astype(np.float64) * step
    return seen.reshape(-1)


def test_sets() -> None:
    names = _native.kernels_available()
    assert "scalar" in names
    assert len(set(names)) == len(names)
    assert _native.kernels_name() in names


def test_select(kernels: str) -> None:
    assert _native.kernels_name() == kernels
    with pytest.raises(ValueError, match="'abacus' cannot run here"):
        _native.kernels_select("abacus")
    assert _native.kernels_name() == kernels


@pytest.mark.parametrize(("type_", "n"), CASES)
def test_dot(kernels: str, type_: int, n: int) -> None:
    rng = np.random.default_rng(n)
    row, weights = make_row(rng, type_, n)
    x = rng.normal(0, 1, n).astype(np.float32)
    got = _native.dot(type_, row, x)
    wide = weights.astype(np.float64)
    seen = int8_blocks(x) if type_ in (Q4_0, Q8_0) else x.astype(np.float64)
    assert abs(got - wide @ seen) <= TOLERANCE * (np.abs(wide) @ np.abs(seen))
    if type_ in (Q4_0, Q8_0):
        error = TOLERANCE_QUANTIZED * np.abs(wide).sum() * float(np.abs(x).max())
        assert abs(got - wide @ x.astype(np.float64)) <= error
    assert _native.dot(type_, row.tobytes(), x) == got


@pytest.mark.parametrize(("type_", "n"), CASES)
def test_axpy(kernels: str, type_: int, n: int) -> None:
    rng = np.random.default_rng(n)
    row, weights = make_row(rng, type_, n)
    unit = 32 if type_ in (Q4_0, Q8_0) else 1
    third = n // 3 // unit * unit
    for begin, end in [(0, n), (third, n), (0, third), (unit, unit)]:
        y = rng.normal(0, 1, n).astype(np.float32)
        expected = y.astype(np.float64)
        expected[begin:end] += np.float64(0.7) * weights[begin:end]
        before = y.copy()
        _native.axpy(type_, row, 0.7, y, begin, end)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(y[:begin], before[:begin])
        np.testing.assert_array_equal(y[end:], before[end:])


@given(bits=st.lists(st.integers(0, 0x7BFF), min_size=1, max_size=40), sign=st.sampled_from([0, 1]))
def test_every_half(bits: list[int], sign: int) -> None:
    """One times a half is that half, subnormal ones included, in every set."""
    halves = np.array(bits, np.uint16) | np.uint16(sign << 15)
    exact = halves.view(np.float16).astype(np.float32)
    before = _native.kernels_name()
    try:
        for name in _native.kernels_available():
            _native.kernels_select(name)
            y = np.zeros(len(bits), np.float32)
            _native.axpy(F16, halves.view(np.uint8), 1.0, y, 0, len(bits))
            np.testing.assert_array_equal(y, exact)
    finally:
        _native.kernels_select(before)


@pytest.mark.parametrize("type_", TYPES)
def test_zero_and_non_finite(kernels: str, type_: int) -> None:
    row, _ = make_row(np.random.default_rng(0), type_, 64)
    assert _native.dot(type_, row, np.zeros(64, np.float32)) == 0.0
    if type_ in (Q4_0, Q8_0):
        # A value that int8 cannot hold counts as zero: NaN itself, and a block with an infinity.
        x = np.zeros(64, np.float32)
        x[3], x[40], x[41] = np.nan, np.inf, 5.0
        assert _native.dot(type_, row, x) == 0.0


def test_arguments_are_checked() -> None:
    x = np.zeros(64, np.float32)
    row = np.zeros(68, np.uint8)  # 64 elements in Q8_0
    with pytest.raises(ValueError, match="type 3 is none of"):
        _native.dot(3, row, x)
    with pytest.raises(ValueError, match="multiple of 32 elements, not 63"):
        _native.dot(Q8_0, row, x[:63])
    with pytest.raises(ValueError, match="has 68 bytes, not 67"):
        _native.dot(Q8_0, row[:67], x)
    with pytest.raises(ValueError, match=r"no range \[0, 65\)"):
        _native.axpy(Q8_0, row, 1.0, x, 0, 65)
    with pytest.raises(ValueError, match=r"no range \[32, 0\)"):
        _native.axpy(Q8_0, row, 1.0, x, 32, 0)
    with pytest.raises(ValueError, match="begin and end to be multiples of 32"):
        _native.axpy(Q8_0, row, 1.0, x, 0, 33)
    unaligned = np.zeros(257, np.uint8)[1:].view(np.float32)
    with pytest.raises(ValueError, match="not aligned"):
        _native.dot(Q8_0, row, unaligned)
    with pytest.raises(TypeError):
        _native.dot(Q8_0, row, x.astype(np.float64))
    with pytest.raises(TypeError):
        _native.dot(Q8_0, row, np.zeros(128, np.float32)[::2])
    frozen = x.copy()
    frozen.flags.writeable = False
    with pytest.raises(TypeError):
        _native.axpy(Q8_0, row, 1.0, frozen, 0, 64)
