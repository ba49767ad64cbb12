"""Arrays on their way in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.loaders.tensor_graph import Quantization, TensorSpec, shape_text, stored_bytes
from penstock.runtime.backends.arrays import check_inputs


def test_quantizing_rounds_ties_away_from_zero_and_holds_the_range() -> None:
    q = Quantization((0.5,), (3,))
    real = np.array([-0.25, 0.25, 0.24, -0.75, 1000, -np.inf, np.inf])
    stored = q.quantize(real, "int8")
    np.testing.assert_array_equal(stored, np.array([2, 4, 3, 1, 127, -128, 127], np.int8))
    assert stored.dtype == np.int8
    np.testing.assert_allclose(q.dequantize(np.array([3, 5], np.int8)), [0.0, 1.0])


def test_a_scale_for_each_index() -> None:
    q = Quantization((1.0, 2.0), (0, 10), axis=1)
    real = np.array([[3.0, 4.0], [5.0, 6.0]])
    stored = q.quantize(real, "uint8")
    np.testing.assert_array_equal(stored, [[3, 12], [5, 13]])
    np.testing.assert_array_equal(q.dequantize(stored), real)


def test_nan_cannot_be_quantized() -> None:
    with pytest.raises(UsageError, match="NaN"):
        Quantization((1.0,), (0,)).quantize(np.array([np.nan]), "int8")


def test_scalars_stay_scalars_and_arrays_become_contiguous() -> None:
    specs = [TensorSpec("s", "float32", ()), TensorSpec("m", "int64", (2, "n"))]
    given: dict[str, NDArray[Any]] = {
        "s": np.array(1, np.float32),
        "m": np.arange(6).reshape(3, 2).T,
    }
    made = check_inputs(Path("m"), specs, given, floats=False, finite=True)
    assert list(made) == ["s", "m"] and made["s"].shape == ()
    assert made["m"].flags["C_CONTIGUOUS"] and made["m"].shape == (2, 3)


def test_any_shape() -> None:
    spec = TensorSpec("x", "bool", None)
    given = {"x": np.zeros((2, 2), bool)}
    assert check_inputs(Path("m"), [spec], given, False, False)["x"].shape == (2, 2)


def test_a_name_that_is_nearly_right() -> None:
    specs = [TensorSpec("input_ids", "int64", (1,)), TensorSpec("mask", "int64", (1,))]
    with pytest.raises(UsageError, match="no input 'input_id', perhaps 'input_ids'; input 'inp"):
        check_inputs(Path("m"), specs, {"input_id": np.zeros(1)}, False, False)


def test_shapes_and_sizes() -> None:
    assert shape_text((1, "n", None)) == "1 x n x ?"
    assert stored_bytes("int4", (3,)) == 2
    assert stored_bytes("string", (3,)) is None
