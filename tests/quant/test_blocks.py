"""Block formats: round trips within a step, exact sizes, clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.errors import FormatError, UsageError
from penstock.quant.blocks import FORMATS, block_format, decode_rows, encode_rows

ROWS = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.sampled_from([32, 64, 96])),
    elements=st.floats(-1000, 1000, width=32),
)


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, name=st.sampled_from(sorted(FORMATS)))
def test_round_trip_is_within_a_step(rows: np.ndarray, name: str) -> None:
    form = FORMATS[name]
    data = encode_rows(rows, form)
    assert data.shape == (len(rows), form.row_bytes(rows.shape[1]))
    blocks = rows.reshape(len(rows), -1, 32)
    error = np.abs(decode_rows(data, form).reshape(blocks.shape) - blocks)
    largest = np.abs(blocks).max(2, keepdims=True)
    # Half a step, and the rounding of the F16 scale times up to 127 or 8 steps. Q4_0 has -8 to 7.
    step = {"F16": 2.0**-11, "Q8_0": 0.5 / 127 + 2.0**-10, "Q4_0": 1 / 8 + 2.0**-9}[name]
    assert (error <= step * largest + 1e-4).all()


@settings(deadline=None, max_examples=30)
@given(rows=ROWS, name=st.sampled_from(sorted(FORMATS)))
def test_rows_are_encoded_on_their_own(rows: np.ndarray, name: str) -> None:
    form = FORMATS[name]
    whole = encode_rows(rows, form)
    assert all((encode_rows(rows[i : i + 1], form)[0] == whole[i]).all() for i in range(len(rows)))


def test_what_is_decoded_encodes_to_the_same_bytes() -> None:
    rows = np.random.default_rng(0).normal(size=(16, 128)).astype(np.float32)
    for form in (FORMATS["F16"], FORMATS["Q8_0"]):
        data = encode_rows(rows, form)
        assert (encode_rows(decode_rows(data, form), form) == data).all()


def test_sizes_are_ggml_s() -> None:
    assert [FORMATS[n].row_bytes(4096) for n in ("F16", "Q8_0", "Q4_0")] == [8192, 4352, 2304]


def test_names_and_widths_that_do_not_fit_are_refused() -> None:
    assert block_format("q8_0") is FORMATS["Q8_0"]
    with pytest.raises(UsageError, match="Q5_K.*F16, Q8_0, Q4_0"):
        block_format("Q5_K")
    with pytest.raises(UsageError, match="100 elements.*Use F16"):
        encode_rows(np.zeros((1, 100), np.float32), FORMATS["Q8_0"])
    with pytest.raises(FormatError, match="33 bytes"):
        decode_rows(np.zeros((1, 33), np.uint8), FORMATS["Q8_0"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 70000.0])
def test_values_that_would_become_infinite_are_refused(value: float) -> None:
    rows = np.zeros((1, 32), np.float32)
    rows[0, 5] = value
    with pytest.raises(FormatError, match="F16 holds finite values up to 65504"):
        encode_rows(rows, FORMATS["F16"])
    if value == 70000.0:
        assert decode_rows(encode_rows(rows, FORMATS["Q8_0"]), FORMATS["Q8_0"])[0, 5] > 69000
