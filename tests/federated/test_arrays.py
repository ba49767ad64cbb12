"""Arrays from the network: what passes, what is refused, and that refusal says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.errors import RefusedUpdateError
from penstock.federated.arrays import Arrays, check_arrays, copy_arrays, digest, nbytes
from penstock.federated.models import model_spec
from penstock.federated.submodels import Axis, TensorSpec
from tests.federated.sample_models import IMAGES, random_arrays

SPEC = model_spec(IMAGES)
EXPECTED = {
    "weight": TensorSpec("weight", "linear", (Axis(2), Axis(3))),
    "norm.running_var": TensorSpec("norm.running_var", "running_var", (Axis(2),)),
    "norm.num_batches_tracked": TensorSpec("norm.num_batches_tracked", "counter", ()),
}


def good() -> dict[str, Any]:
    return {
        "weight": np.ones((2, 3), np.float32),
        "norm.running_var": np.ones(2, np.float32),
        "norm.num_batches_tracked": np.array(3, np.int64),
    }


def test_what_was_asked_for_passes_in_the_order_of_the_spec() -> None:
    arrays = random_arrays(SPEC)
    backwards = dict(reversed(arrays.items()))
    checked = check_arrays(backwards, SPEC.by_name(), "device 1")
    assert list(checked) == [tensor.name for tensor in SPEC]
    assert all(checked[name] is arrays[name] for name in arrays)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("weight", None, "missing"),
        ("other", np.ones(2, np.float32), "unknown"),
        ("x" * 10**6, np.ones(2, np.float32), "unknown"),
        ("weight", [[1.0] * 3] * 2, "list"),
        ("weight", np.ones((1, 3), np.float32), "shape"),
        ("weight", np.ones(6, np.float32), "shape"),
        ("weight", np.ones((2, 3)), "float64"),
        ("weight", np.ones((2, 3), ">f4"), "type"),
        ("weight", np.ones((2, 3), object), "object"),
        ("weight", np.array([[1, 2, 3], [4, np.nan, 6]], np.float32), r"weight\[1, 1\] is nan"),
        ("weight", np.full((2, 3), -np.inf, np.float32), "6 such values"),
        ("weight", np.full((2, 3), 2e18, np.float32), "finite"),
        ("norm.running_var", np.array([1, -1e-9], np.float32), "negative variance"),
        ("norm.num_batches_tracked", np.array(-1, np.int64), "expected a count"),
        ("norm.num_batches_tracked", np.array(1.0, np.float32), "float32"),
        ("norm.num_batches_tracked", np.array([1], np.int64), "shape"),
        ("norm.num_batches_tracked", np.array(1 << 62), "expected a count"),
    ],
)
def test_anything_else_is_refused(name: str, value: object, says: str) -> None:
    arrays = good()
    check_arrays(arrays, EXPECTED, "device 7f3a")
    arrays[name] = value
    if value is None:
        del arrays[name]
    with pytest.raises(RefusedUpdateError, match=says) as caught:
        check_arrays(arrays, EXPECTED, "device 7f3a")
    assert str(caught.value).startswith("device 7f3a") and len(str(caught.value)) < 500


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.complex64]),
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=3),
    )
)
def test_fuzzed_arrays_pass_only_as_finite_values_of_the_shape(array: np.ndarray[Any, Any]) -> None:
    arrays = good() | {"weight": array}
    try:
        checked = check_arrays(arrays, EXPECTED, "device 1")
    except RefusedUpdateError:
        fits = array.shape == (2, 3) and array.dtype == np.float32
        assert not fits or not (np.abs(array) <= 1e18).all()
    else:
        assert checked["weight"].shape == (2, 3) and np.isfinite(checked["weight"]).all()


def test_copies_are_independent() -> None:
    arrays = random_arrays(SPEC)
    copies = copy_arrays(arrays)
    copies["conv1.weight"][...] = 0
    assert arrays["conv1.weight"].any()


def test_bytes_are_those_of_the_values() -> None:
    assert nbytes(good()) == 6 * 4 + 2 * 4 + 8


def test_the_digest_sees_names_types_shapes_and_values_but_not_the_order() -> None:
    base: Arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(1, np.int64)}
    others: list[Arrays] = [
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"].astype(np.float64), "b": base["b"]},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"] + 1, "b": base["b"]},
        {"a": base["a"], "b": base["b"].reshape(1)},
    ]
    assert digest(base) == digest({"b": base["b"], "a": base["a"]})
    assert digest(base) == digest({"b": base["b"], "a": np.asfortranarray(base["a"])})
    assert len({digest(base), *map(digest, others)}) == len(others) + 1
