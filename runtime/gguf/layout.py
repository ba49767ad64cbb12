"""Where a ggml tensor keeps its sources: found by looking, so that no header of ggml is needed.

ggml's accessors give a tensor's name, data and size, but not the tensors that its node reads. They
are an array of pointers inside the tensor. A product of three tensors made by the library itself
shows where: the places that hold their addresses. A view shows where the array ends.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import UnsupportedModelError

_F32, _I32 = 0, 26
ACCESSORS = ("ggml_get_name", "ggml_get_data", "ggml_nbytes", "ggml_nelements", "ggml_nrows")


class _InitParams(ctypes.Structure):
    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


@dataclass(frozen=True)
class GgmlLayout:
    """Addresses of the accessors, in the order of `WeightStreamer.access`, and the sources."""

    accessors: tuple[int, int, int, int, int, int]
    sources_offset: int
    sources: int


def find_layout(folder: Path) -> GgmlLayout:
    """Look into tensors of the libraries in `folder` (llama_cpp/lib).

    Raises:
        UnsupportedModelError: a library, a name or the array of sources is not there.
    """
    base, cpu = (_library(folder, name) for name in ("ggml-base", "ggml-cpu"))
    name, data, nbytes, nelements, nrows = (_address(base, name) for name in ACCESSORS)
    accessors = (name, data, nbytes, nelements, nrows, _address(cpu, "ggml_get_i32_nd"))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    init = _function(base, "ggml_init", pointer, _InitParams)
    tensor_2d = _function(base, "ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, count, count)
    tensor_3d = _function(
        base, "ggml_new_tensor_3d", pointer, pointer, ctypes.c_int, count, count, count
    )
    product = _function(base, "ggml_mul_mat_id", pointer, pointer, pointer, pointer, pointer)
    view = _function(base, "ggml_view_1d", pointer, pointer, pointer, count, ctypes.c_size_t)
    free = _function(base, "ggml_free", None, pointer)
    overhead = _function(base, "ggml_tensor_overhead", ctypes.c_size_t)()
    context = init(_InitParams(1 << 20, None, True))
    try:
        matrices = tensor_3d(context, _F32, 64, 32, 4)
        x, ids = tensor_3d(context, _F32, 64, 2, 3), tensor_2d(context, _I32, 2, 3)
        made = _words(product(context, matrices, x, ids), overhead)
        viewed = _words(view(context, matrices, 5, 0), overhead)
        places = [[i for i, word in enumerate(made) if word == t] for t in (matrices, x, ids)]
        ends = [i for i, word in enumerate(viewed) if word == matrices]
    finally:
        free(context)
    first = places[0][0] if places[0] else -1
    if [len(p) for p in places] != [1, 1, 1] or [p[0] for p in places] != [
        first,
        first + 1,
        first + 2,
    ]:
        raise _unknown("a node's sources were not found in its tensor")
    # A view is its own first source, and names its origin once more right behind the sources.
    if len(ends) != 2 or ends[0] != first or not 3 <= ends[1] - first <= 32:
        raise _unknown("the end of a node's sources was not found in its tensor")
    return GgmlLayout(accessors, first * 8, ends[1] - first)


def _words(tensor: int, overhead: int) -> list[int]:
    # The overhead is a tensor with its object header of 32 bytes before it.
    return list((ctypes.c_uint64 * ((overhead - 32) // 8)).from_address(tensor))


def _library(folder: Path, name: str) -> ctypes.CDLL:
    found = sorted(folder.glob(f"*{name}.*"))
    for path in found:
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    raise _unknown(f"there is no library {name} in {folder}")


def _function(
    library: ctypes.CDLL, name: str, result: Any, *arguments: Any
) -> ctypes._NamedFuncPointer:
    _address(library, name)
    function: ctypes._NamedFuncPointer = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


def _address(library: ctypes.CDLL, name: str) -> int:
    try:
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    except AttributeError:
        address = None
    if not address:
        raise _unknown(f"{library._name} does not export {name}")
    return address


def _unknown(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"llama-cpp-python cannot be streamed under: {why}. Penstock is tested with version "
        "0.3.36; install it with: pip install 'penstock[llama]'"
    )
