"""A TFLite file as objects that can be edited, and back.

The objects are those of the schema's generated code (`ModelT`), which LiteRT ships. It trusts what
it reads, so `read_model` has the strict reader check the file first.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, FormatError, StorageError
from penstock.loaders.tensor_graph import TensorGraph
from penstock.loaders.tflite_file import read_tflite

DAMAGED = (
    struct.error, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError,
    MemoryError, RecursionError,
)  # fmt: skip


def schema() -> Any:
    """The generated code of TFLite's schema.

    Raises:
        BackendMissingError: ai-edge-litert, which has it, is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise BackendMissingError(
            f"TFLite files are edited with ai-edge-litert, which cannot be imported ({error}); "
            "install it with: pip install 'penstock[litert-export]'"
        ) from None
    return schema_py_generated


def read_model(path: str | os.PathLike[str]) -> tuple[TensorGraph, Any]:
    """What the file holds, checked, and its objects.

    Raises:
        FormatError: damaged, or not TFLite.
        StorageError, BackendMissingError.
    """
    graph = read_tflite(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    return graph, parse(data, str(path))


def parse(data: bytes, name: str) -> Any:
    """Objects of a TFLite file's bytes; `name` is for errors.

    Raises:
        FormatError, BackendMissingError.
    """
    generated = schema()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = generated.ModelT.InitFromObj(generated.Model.GetRootAs(data, 0))
    except DAMAGED as error:
        raise FormatError(
            f"{name}: the FlatBuffer cannot be unpacked ({type(error).__name__}: {error}); the "
            "file is damaged, fetch or convert it again"
        ) from None
    for number, buffer in enumerate(model.buffers):
        if buffer.offset > 1:  # stored behind the FlatBuffer
            end = buffer.offset + buffer.size
            if end > len(data):
                raise FormatError(
                    f"{name}: buffer {number} ends at {end}, but the file has {len(data)} bytes; "
                    "it is cut short, fetch it again"
                )
            buffer.data = np.frombuffer(data, np.uint8)[buffer.offset : end]
        buffer.offset = buffer.size = 0
    return model


def text(name: bytes | str | None) -> str:
    """A name of the objects, which are bytes where they were read."""
    if name is None:
        return ""
    return name if isinstance(name, str) else name.decode("utf-8", errors="replace")


def operator_code(model: Any, operator: Any) -> int:
    """The builtin operator of a node, whichever of the two fields it stands in."""
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def add_operator_code(model: Any, builtin: int, version: int) -> int:
    """The number of an operator code of at least that version; made where there is none."""
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
            code.version = max(code.version, version)
            return index
    made = schema().OperatorCodeT()
    made.builtinCode = builtin
    made.deprecatedBuiltinCode = min(builtin, 127)
    made.version = version
    model.operatorCodes.append(made)
    return len(model.operatorCodes) - 1


def add_buffer(model: Any, data: NDArray[np.uint8]) -> int:
    """The number of a new buffer with these bytes."""
    made = schema().BufferT()
    made.data = data
    model.buffers.append(made)
    return len(model.buffers) - 1


def buffer_array(model: Any, tensor: Any) -> NDArray[np.float32] | None:
    """A float32 constant, of the tensor's shape; None where it is no constant.

    Raises:
        FormatError: its size is not that of its shape.
    """
    data = model.buffers[tensor.buffer].data if tensor.buffer else None
    if data is None or len(data) == 0 or tensor.type != schema().TensorType.FLOAT32:
        return None
    shape = tuple(int(dim) for dim in tensor.shape) if tensor.shape is not None else ()
    raw = np.asarray(data, np.uint8).tobytes()
    if len(raw) != 4 * int(np.prod(shape, dtype=np.int64)):
        raise FormatError(f"tensor '{text(tensor.name)}' of {shape} has {len(raw)} bytes")
    return np.frombuffer(raw, np.float32).reshape(shape)


def buffer_users(model: Any) -> Iterator[tuple[int, int]]:
    """(buffer, subgraph) of every tensor and every piece of metadata."""
    for number, graph in enumerate(model.subgraphs):
        for tensor in graph.tensors or []:
            yield tensor.buffer, number
    for entry in model.metadata or []:
        yield entry.buffer, -1
