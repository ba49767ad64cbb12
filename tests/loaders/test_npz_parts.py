"""Headers of arrays: NumPy's own, read back; damaged ones, each refused by one kind of error."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.loaders.npz_parts import ArrayHeader, read_header, write_npz


def stored(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


WHOLE = stored(np.zeros((3, 4), np.float32))


@pytest.mark.parametrize("array", [np.zeros((3, 4), "f4"), np.zeros((2, 0), "i8"), np.array(True),
                                   np.zeros((5, 2), "u1", order="F")])  # fmt: skip
def test_what_numpy_writes(array: Any) -> None:
    stream = io.BytesIO(stored(array))
    header = read_header(stream)
    assert header == ArrayHeader(array.shape, array.flags.fnc, array.dtype)
    assert header.nbytes == array.nbytes == len(stream.read())


@given(at=st.integers(0, 127), byte=st.integers(0, 255))
def test_a_damaged_byte_is_read_or_refused(at: int, byte: int) -> None:
    data = bytearray(WHOLE)
    data[at] = byte
    try:
        header = read_header(io.BytesIO(bytes(data)))
    except ValueError:
        return
    assert min(header.shape, default=0) >= 0


@pytest.mark.parametrize(("old", "new"), [
    (b"False, '", b"False,)'"),  # tokenize.TokenError, of the parser
    (b"(3, 4)", b"(3,-4)"),
    (b"NUMPY\x01", b"NUMPY\x03"),
    (b"'<f4'", b"'<,4'"),
])  # fmt: skip
def test_what_is_no_header(old: bytes, new: bytes) -> None:
    assert old in WHOLE
    with pytest.raises(ValueError):
        read_header(io.BytesIO(WHOLE.replace(old, new)))


def test_the_same_arrays_are_the_same_bytes() -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array(7)}
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        write_npz(file, arrays)
    assert files[0].getvalue() == files[1].getvalue()
    files[0].seek(0)
    with np.load(files[0], allow_pickle=False) as found:
        assert found.files == ["a", "b"]
        assert all((found[name] == array).all() for name, array in arrays.items())
