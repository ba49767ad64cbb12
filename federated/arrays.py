"""Named arrays: the parameters that travel between server and devices, and their door checks.

A model's parameters are a dict from a state-dict name to an array. Nothing that comes over the
network is used before `check_arrays` has compared it with what was asked for: names, shapes, types,
finite values. NumPy would add (8, 4) and (1, 4) without a word, and one NaN would spread to all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from penstock.errors import RefusedUpdateError

Arrays: TypeAlias = dict[str, NDArray[Any]]

LARGEST = 1e18  # a float32 sum of squares of greater values is infinite
MOST_COUNT = 1 << 53  # batches that BatchNorm has seen; the global model's stays under half of it


def check_arrays(arrays: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> Arrays:
    """The arrays, when they are what was expected; else an error that names what is wrong.

    Args:
        arrays: what came.
        expected: name to anything with `shape` and `dtype`: arrays, or `TensorSpec`s.
        source: who sent them, for the message: "device 7f3a", "the server".

    Raises:
        RefusedUpdateError: a name is missing or foreign, a shape or a type differs, a value is NaN,
            infinite or beyond 1e18, or a variance or a counter is negative.
    """
    missing = [name for name in expected if name not in arrays]
    foreign = [name for name in arrays if name not in expected]
    if missing or foreign:
        unknown = [str(name)[:80] for name in foreign[:4]]  # a foreign name can be of any length
        raise RefusedUpdateError(
            f"{source} sent other arrays than asked: missing {missing[:4]}, unknown {unknown} "
            f"({len(missing)} and {len(foreign)} in all)"
        )
    for name, want in expected.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray):
            raise RefusedUpdateError(f"{source}: {name} is a {type(array).__name__}, not an array")
        if tuple(array.shape) != tuple(want.shape):
            raise RefusedUpdateError(
                f"{source}: {name} has shape {array.shape}, expected {tuple(want.shape)}"
            )
        if array.dtype != np.dtype(want.dtype):
            raise RefusedUpdateError(
                f"{source}: {name} has type {array.dtype}, expected {np.dtype(want.dtype)}"
            )
        if array.dtype.kind == "f":
            bad = ~(np.abs(array) <= LARGEST)  # NaN compares false
            if bad.any():
                at = tuple(int(i) for i in np.argwhere(bad)[0])
                raise RefusedUpdateError(
                    f"{source}: {name}{list(at)} is {array[at]}, expected a finite number "
                    f"({int(bad.sum())} such values)"
                )
            if name.endswith("running_var") and (array < 0).any():
                raise RefusedUpdateError(f"{source}: {name} holds a negative variance")
        elif array.dtype.kind == "i" and ((array < 0) | (array > MOST_COUNT)).any():
            raise RefusedUpdateError(
                f"{source}: {name} is {array.ravel()[0]}, expected a count of 0 to {MOST_COUNT}"
            )
    return {name: arrays[name] for name in expected}


def copy_arrays(arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """Copies that nothing else can change."""
    return {name: np.array(array) for name, array in arrays.items()}


def nbytes(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of the values, as they travel without headers."""
    return sum(array.nbytes for array in arrays.values())


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of names: hex, 64 letters."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]  # tobytes() is in C order; ascontiguousarray would make () a (1,)
        state.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        state.update(array.tobytes())
    return state.hexdigest()
