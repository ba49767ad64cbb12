"""A strict reader of TFLite files: every offset, index and size in them is checked.

The library takes a file as it is: a broken offset in it ends the process. The format:
tensorflow/compiler/mlir/lite/schema/schema.fbs, whose numbers of fields are used here.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import FormatError, StorageError
from penstock.loaders.file_kind import TFLITE
from penstock.loaders.flatbuffer import Table, root
from penstock.loaders.tensor_graph import (
    Dim,
    Operation,
    Quantization,
    TensorGraph,
    TensorSpec,
    Weight,
    stored_bytes,
)
from penstock.loaders.tflite_graph import (
    check_calls,
    check_sparsity,
    operator_kinds,
    read_operations,
)

MAGIC = b"TFL3"
SCHEMA = 3
DTYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 5: "string", 6: "bool",
    7: "int16", 8: "complex64", 9: "int8", 10: "float64", 11: "complex128", 12: "uint64",
    13: "resource", 14: "variant", 15: "uint32", 16: "uint16", 17: "int4", 18: "bfloat16",
    19: "int2", 20: "uint4", 21: "float8e4m3fn", 22: "float8e5m2",
}  # fmt: skip
MAX_SUBGRAPHS = 1 << 12
MAX_ELEMENTS = 1 << 31  # of a tensor, in any of its dimensions' products


@dataclass
class _Found:
    """What a walk through the subgraphs collects."""

    buffers: list[int]
    operations: list[Operation] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    calls: dict[int, set[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Subgraph:
    specs: tuple[TensorSpec, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_tflite(path: str | os.PathLike[str]) -> TensorGraph:
    """Read the structure of a TFLite model, and check it.

    Raises:
        FormatError: not TFLite, damaged or cut short.
        StorageError: the file cannot be read.
    """
    file_path = Path(path)
    try:
        with open(file_path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size == 0:
                raise FormatError(f"{file_path}: the file is empty; expected a TFLite model")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                start = data[:8]
                if start[4:] != MAGIC:
                    raise FormatError(
                        f"{file_path}: not a TFLite model (starts with {start!r}, expected "
                        f"{MAGIC!r} after 4 bytes)"
                    )
                return _read_model(file_path, size, root(file_path, data, "the model"))
    except OSError as error:
        raise StorageError(f"{file_path}: cannot be read: {error.strerror or error}") from None


def _read_model(path: Path, size: int, model: Table) -> TensorGraph:
    schema = model.number(0, "I")
    if schema != SCHEMA:
        raise FormatError(f"{path}: the schema's version is {schema}, expected {SCHEMA}")
    kinds = operator_kinds(model)
    found = _Found([_buffer_bytes(table, size) for table in model.tables(4, "buffer")])
    if not found.buffers:
        raise model.fail("there are no buffers, not even the empty one that must be first")
    subgraphs: list[_Subgraph] = []
    _, count = model.vector(2, 4)
    if not 0 < count <= MAX_SUBGRAPHS:
        raise model.fail(f"it has {count} subgraphs, expected 1 to {MAX_SUBGRAPHS}")
    for number, table in enumerate(model.tables(2, "subgraph")):
        subgraphs.append(_read_subgraph(table, number, count, kinds, found))
    check_calls(model, found.calls)
    for entry in model.tables(6, "metadata"):
        if entry.string(0) is None or not 0 <= entry.number(1, "I") < len(found.buffers):
            raise entry.fail("it has no name, or names a buffer that is not there")
    names = _signature(model, subgraphs)
    main = subgraphs[0]
    inputs, outputs = (
        tuple(_named(main, index, side, place, names) for place, index in enumerate(ports))
        for side, ports in (("input", main.inputs), ("output", main.outputs))
    )
    for side in (inputs, outputs):
        if len({spec.name for spec in side}) < len(side):
            raise model.fail(f"names appear twice: {', '.join(spec.name for spec in side)}")
    return TensorGraph(
        path=path,
        size=size,
        format=TFLITE,
        version=f"schema {schema}",
        producer=model.string(3) or "",
        inputs=inputs,
        outputs=outputs,
        operations=tuple(found.operations),
        weights=tuple(found.weights),
        ports=(*main.inputs, *main.outputs),
    )


def _buffer_bytes(buffer: Table, size: int) -> int:
    """Bytes of a buffer, in the FlatBuffer or, of large models, behind it."""
    _, count = buffer.vector(0, 1)
    offset, length = buffer.number(1, "Q"), buffer.number(2, "Q")
    if offset > 1:
        if offset + length > size:
            raise buffer.fail(f"bytes {offset} to {offset + length}, but the file has {size}")
        return length
    return count


def _read_subgraph(
    table: Table, number: int, subgraphs: int, kinds: list[str], found: _Found
) -> _Subgraph:
    specs: list[TensorSpec] = []
    constants: set[int] = set()
    there: set[int] = set()
    for tensor in table.tables(0, f"{table.what}, tensor"):
        spec, weight = _read_tensor(tensor, found.buffers)
        if weight is not None:
            constants.add(len(specs))
            found.weights.append(weight)
        if weight is not None or tensor.number(5, "B") or 0 in (spec.shape or ()):
            there.add(len(specs))
        specs.append(spec)
    inputs, outputs = table.numbers(1), table.numbers(2)
    for index in (*inputs, *outputs):
        if not 0 <= index < len(specs):
            raise table.fail(f"tensor {index} is an input or output; there are {len(specs)}")
    if constants.intersection(inputs):
        raise table.fail("a constant is an input")
    names = [spec.name for spec in specs]
    operations, calls = read_operations(table, names, there.union(inputs), kinds, subgraphs)
    found.operations += operations
    found.calls[number] = calls
    return _Subgraph(tuple(specs), inputs, outputs)


def _read_tensor(tensor: Table, buffers: list[int]) -> tuple[TensorSpec, Weight | None]:
    shape = tensor.numbers(0)
    dtype = DTYPES.get(tensor.number(1, "b"), f"type {tensor.number(1, 'b')}")
    buffer = tensor.number(2, "I")
    name = tensor.string(3) or ""
    if any(dim < 0 for dim in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise tensor.fail(f"'{name}' has shape {shape}")
    if buffer >= len(buffers):
        raise tensor.fail(f"'{name}' is in buffer {buffer}; there are {len(buffers)}")
    signature = tensor.numbers(7)
    if signature and len(signature) != len(shape):
        raise tensor.fail(f"'{name}' has shape {shape} and, where it may vary, {signature}")
    sparsity = tensor.table(6, f"{tensor.what}, sparsity")
    if sparsity is not None:
        check_sparsity(sparsity, len(shape))
    nbytes, wanted = buffers[buffer], stored_bytes(dtype, shape)
    weight = None
    if nbytes:
        if sparsity is None and wanted is not None and nbytes != wanted:
            raise tensor.fail(f"'{name}' of {dtype} {shape} has {nbytes} bytes, expected {wanted}")
        weight = Weight(name, dtype, shape, nbytes)
    dims: tuple[Dim, ...] = tuple(
        None if fixed < 0 else dim for dim, fixed in zip(shape, signature or shape, strict=True)
    )
    return TensorSpec(name, dtype, dims, _quantization(tensor, shape)), weight


def _quantization(tensor: Table, shape: tuple[int, ...]) -> Quantization | None:
    table = tensor.table(4, f"{tensor.what}, quantization")
    if table is None:
        return None
    for limits in (0, 1):
        table.vector(limits, 4)
    scales, zeros = table.reals(2), table.numbers(3, "q")
    table.table(5, f"{table.what}, details")
    axis = table.number(6)
    if not any(scales):
        return None
    if any(not math.isfinite(scale) or scale < 0 for scale in scales):
        raise table.fail(f"scales {scales[:4]}, expected positive numbers")
    if len(zeros) not in (1, len(scales)):
        raise table.fail(f"{len(scales)} scales and {len(zeros)} zero points")
    if len(scales) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scales)):
        raise table.fail(f"{len(scales)} scales along dimension {axis} of {shape}")
    zeros = zeros if len(zeros) == len(scales) else zeros * len(scales)
    return Quantization(scales, zeros, axis if len(scales) > 1 else None)


def _signature(model: Table, subgraphs: list[_Subgraph]) -> dict[tuple[str, int], str]:
    """Names of the first subgraph's inputs and outputs in its first signature: those to use."""
    names: dict[tuple[str, int], str] = {}
    for table in model.tables(7, "signature"):
        subgraph = table.number(4, "I")
        if table.string(2) is None or subgraph >= len(subgraphs):
            raise table.fail(f"it has no name, or is of subgraph {subgraph}, which is not there")
        found: dict[tuple[str, int], str] = {}
        for side, number in (("input", 0), ("output", 1)):
            for entry in table.tables(number, f"{table.what}, {side}"):
                name, index = entry.string(0), entry.number(1, "I")
                if name is None or index >= len(subgraphs[subgraph].specs):
                    raise entry.fail(f"it has no name, or is tensor {index}, which is not there")
                found[side, index] = name
        if subgraph == 0 and not names:
            names = found
    return names


def _named(
    graph: _Subgraph, index: int, side: str, place: int, names: dict[tuple[str, int], str]
) -> TensorSpec:
    spec = graph.specs[index]
    name = names.get((side, index)) or spec.name or f"{side}_{place}"
    return TensorSpec(name, spec.dtype, spec.shape, spec.quantization)
