"""Arrays on their way into a model and out of it: checked, quantized, dequantized."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, UnsupportedModelError, UsageError
from penstock.loaders.tensor_graph import TensorSpec, shape_text

NUMPY_DTYPES = frozenset({
    "float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64",
    "uint64", "bool", "complex64", "complex128",
})  # fmt: skip


def check_ports(path: Path, specs: Sequence[TensorSpec], known: frozenset[str]) -> None:
    """Every input and output must be of a type that an array can have."""
    odd = [f"'{spec.name}' ({spec.dtype})" for spec in specs if spec.dtype not in known]
    if odd:
        raise UnsupportedModelError(
            f"{path}: inputs and outputs of types that no array has: {', '.join(odd)}; supported "
            f"are {', '.join(sorted(known))}"
        )


def check_inputs(
    path: Path,
    specs: Sequence[TensorSpec],
    given: Mapping[str, NDArray[Any]],
    floats: bool,
    finite: bool,
) -> dict[str, NDArray[Any]]:
    """What the caller gave, contiguous and as the model takes it.

    Raises:
        UsageError: it is not what the model takes.
    """
    names = [spec.name for spec in specs]
    _check_names(path, names, list(given))
    return {spec.name: _check_array(path, spec, given[spec.name], floats, finite) for spec in specs}


def finish_outputs(
    path: Path,
    specs: Sequence[TensorSpec],
    arrays: Sequence[NDArray[Any]],
    floats: bool,
    finite: bool,
) -> dict[str, NDArray[Any]]:
    """What the model made, by name.

    Raises:
        PenstockError: `finite`, and something is not.
    """
    made = {}
    for spec, array in zip(specs, arrays, strict=True):
        if floats and spec.quantization is not None and array.dtype.kind in "iu":
            array = spec.quantization.dequantize(array)
        if finite and not _is_finite(array):
            raise PenstockError(f"{path}: output '{spec.name}' has values that are not finite")
        made[spec.name] = array
    return made


def describe(arrays: Mapping[str, NDArray[Any]]) -> str:
    """What was given, for the error of a library."""
    return ", ".join(f"'{name}' {a.dtype} {shape_text(a.shape)}" for name, a in arrays.items())


def _check_names(path: Path, wanted: list[str], given: list[str]) -> None:
    unknown = [name for name in given if name not in wanted]
    missing = [name for name in wanted if name not in given]
    if not unknown and not missing:
        return
    parts = []
    for name in unknown:
        near = difflib.get_close_matches(str(name), missing, n=1)
        parts.append(f"there is no input '{name}'" + (f", perhaps '{near[0]}'" if near else ""))
    parts += [f"input '{name}' is missing" for name in missing]
    listed = ", ".join(f"'{name}'" for name in wanted) or "none"
    raise UsageError(f"{path}: {'; '.join(parts)}; the model's inputs are {listed}")


def _check_array(
    path: Path, spec: TensorSpec, array: NDArray[Any], floats: bool, finite: bool
) -> NDArray[Any]:
    where = f"{path}: input '{spec.name}'"
    if not isinstance(array, np.ndarray):
        kind = type(array).__name__
        raise UsageError(f"{where} is a {kind}, expected a NumPy array of {spec}")
    if spec.shape is not None and not _fits(array.shape, spec.shape):
        raise UsageError(
            f"{where} has shape {shape_text(array.shape)}, expected {shape_text(spec.shape)}"
        )
    if finite and not _is_finite(array):
        raise UsageError(f"{where} has values that are not finite (NaN or infinity)")
    if spec.dtype == "string":
        if array.dtype.kind not in "OU":
            raise UsageError(f"{where} is {array.dtype}, expected strings")
        return array
    quantized = spec.quantization is not None and np.dtype(spec.dtype).kind in "iu"
    if floats and quantized and array.dtype.kind == "f":
        assert spec.quantization is not None
        try:
            array = spec.quantization.quantize(array, spec.dtype)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    if array.dtype != np.dtype(spec.dtype):
        hint = f"array.astype('{spec.dtype}') makes one"
        if quantized and array.dtype.kind == "f":
            hint = "run(..., floats=True) quantizes it"
        raise UsageError(f"{where} is {array.dtype}, expected {spec.dtype}; {hint}")
    return np.ascontiguousarray(array).reshape(array.shape)  # it makes scalars one-dimensional


def _fits(shape: tuple[int, ...], wanted: Sequence[int | str | None]) -> bool:
    return len(shape) == len(wanted) and all(
        not isinstance(dim, int) or size == dim for size, dim in zip(shape, wanted, strict=True)
    )


def _is_finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
