"""llama.cpp's own quantizers, through the ggml library that llama-cpp-python brings."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.quant.blocks import BlockFormat


def ggml_library() -> ctypes.CDLL:
    """The library, or a skip where there is none."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("llama-cpp-python is not installed")
    found = sorted((Path(spec.origin).parent / "lib").glob("libggml-base.*"))
    if not found:
        pytest.skip("llama-cpp-python has no libggml-base")
    library = ctypes.CDLL(str(found[0]))
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    library.ggml_quantize_init.restype = None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, pointer, pointer, count, count, count, pointer)
    ]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def encode_with_ggml(
    library: ctypes.CDLL,
    values: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
    form: BlockFormat,
) -> NDArray[np.uint8]:
    """Rows (n, columns) as llama.cpp encodes them; `importance` is one weight a column."""
    rows, columns = values.shape
    source = np.ascontiguousarray(values, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    encoded = np.zeros((rows, form.row_bytes(columns)), np.uint8)
    library.ggml_quantize_init(form.ggml_type)
    written: int = library.ggml_quantize_chunk(
        form.ggml_type,
        source.ctypes.data,
        encoded.ctypes.data,
        0,
        rows,
        columns,
        None if weights is None else weights.ctypes.data,
    )
    assert written == encoded.size
    return encoded
