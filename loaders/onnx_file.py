"""A strict reader of ONNX files: what is in the graph, and that nothing points out of the file.

The format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Numbers of fields are named
after their message. Weights are not read, only found.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import FormatError, StorageError
from penstock.loaders.file_kind import ONNX
from penstock.loaders.onnx_external import ExternalData
from penstock.loaders.protobuf import Message, signed
from penstock.loaders.tensor_graph import (
    Dim,
    Operation,
    TensorGraph,
    TensorSpec,
    Weight,
    stored_bytes,
)

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8e4m3fn", 18: "float8e4m3fnuz",
    19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1",
    24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
MAX_DEPTH = 40  # of graphs in nodes of graphs
IR_WITH_OPSETS = 3
EXTERNAL = 1  # TensorProto.data_location


@dataclass
class _Found:
    """What a walk through the file collects."""

    external: ExternalData
    operations: list[Operation] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    functions: set[tuple[str, str]] = field(default_factory=set)
    opsets: dict[str, int] = field(default_factory=dict)


def read_onnx(path: str | os.PathLike[str]) -> TensorGraph:
    """Read the structure of an ONNX model, and check it.

    Raises:
        FormatError: not ONNX, damaged or cut short, or it wants weights from outside its folder.
        StorageError: the file, or one beside it, cannot be read.
    """
    file_path = Path(path)
    try:
        with open(file_path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size == 0:
                raise FormatError(f"{file_path}: the file is empty; expected an ONNX model")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_model(Message(file_path, data, 0, size))
    except OSError as error:
        raise StorageError(f"{file_path}: cannot be read: {error.strerror or error}") from None


def read_onnx_bytes(path: Path, data: bytes) -> TensorGraph:
    """The same of a model in memory, which must hold its weights itself.

    Args:
        path: what errors call it.

    Raises:
        FormatError: not ONNX, damaged or cut short, or it wants weights from files beside it.
    """
    if not data:
        raise FormatError(f"{path}: empty; expected an ONNX model")
    graph = _read_model(Message(path, data, 0, len(data)))
    if graph.external:
        raise FormatError(f"{path}: its weights are in files beside it, expected them inside")
    return graph


def _read_model(model: Message) -> TensorGraph:
    # A model nearly always starts with its IR version; what does not and has no sense is foreign.
    try:
        return _read_fields(model)
    except FormatError as error:
        start = bytes(model.data[:8])
        if start[:1] == b"\x08":
            raise
        raise FormatError(
            f"{model.path}: not an ONNX model (starts with {start!r}, expected b'\\x08' and the "
            f"version): {str(error).removeprefix(f'{model.path}: ')}"
        ) from None


def _read_fields(model: Message) -> TensorGraph:
    found = _Found(ExternalData(model.path))
    ir_version, producer = 0, ["", ""]
    graph: Message | None = None
    for number, value in model.fields():
        if number == 1:
            ir_version = _number(model, value)
        elif number in (2, 3):
            producer[number - 2] = _message(model, value).text("the producer")
        elif number == 7:
            graph = _message(model, value)
        elif number == 8:
            domain, version = _read_opset(_message(model, value))
            found.opsets[domain] = version
        elif number == 25:
            _read_function(_message(model, value), found)
    if graph is None:
        raise FormatError(f"{model.path}: there is no graph in it; expected an ONNX model")
    if ir_version < 1 or (ir_version >= IR_WITH_OPSETS and not found.opsets):
        wanted = "an IR version of 1 or more" if ir_version < 1 else "the versions of its operators"
        raise FormatError(f"{model.path}: {wanted} is missing; the file is damaged or is not ONNX")
    inputs, outputs = _read_graph(graph, found, 0)
    constants = {weight.name for weight in found.weights}
    opsets = ", ".join(f"{name or 'ai.onnx'} {n}" for name, n in sorted(found.opsets.items()))
    return TensorGraph(
        path=model.path,
        size=model.end + found.external.nbytes,
        format=ONNX,
        version=f"IR version {ir_version}, operators of {opsets or 'ai.onnx 1'}",
        producer=" ".join(part for part in producer if part),
        # Before IR version 4 each weight is an input too, which a caller could replace.
        inputs=tuple(spec for spec in inputs if spec.name not in constants),
        outputs=outputs,
        operations=tuple(found.operations),
        weights=tuple(found.weights),
        external=found.external.paths,
        opsets=found.opsets,
        functions=frozenset(found.functions),
    )


def _read_opset(message: Message) -> tuple[str, int]:
    domain, version = "", 1
    for number, value in message.fields():
        if number == 1:
            domain = _message(message, value).text("a domain of operators")
        elif number == 2:
            version = signed(_number(message, value))
    return ("" if domain == "ai.onnx" else domain), version


def _read_function(message: Message, found: _Found) -> None:
    name, domain = "", ""
    for number, value in message.fields():
        if number == 1:
            name = _message(message, value).text("a function's name")
        elif number == 10:
            domain = _message(message, value).text("a function's domain")
        elif number == 7:
            _read_node(_message(message, value), found, 0)
        elif number == 9:
            other, version = _read_opset(_message(message, value))
            found.opsets.setdefault(other, version)
    found.functions.add((domain, name))


def _read_graph(
    graph: Message, found: _Found, depth: int
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    if depth > MAX_DEPTH:
        raise graph.fail(f"graphs in graphs, more than {MAX_DEPTH} deep", graph.start)
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for number, value in graph.fields():
        if number == 1:
            _read_node(_message(graph, value), found, depth)
        elif number == 5:
            found.weights.append(_read_tensor(_message(graph, value), found))
        elif number == 15:
            found.weights.append(_read_sparse(_message(graph, value), found))
        elif number in (11, 12):
            spec = _read_value(_message(graph, value))
            (inputs if number == 11 else outputs).append(spec)
    return tuple(inputs), tuple(outputs)


def _read_node(node: Message, found: _Found, depth: int) -> None:
    name = kind = domain = made = ""
    for number, value in node.fields():
        if number == 2:
            made = made or _message(node, value).text("an output's name")
        elif number == 3:
            name = _message(node, value).text("a node's name")
        elif number == 4:
            kind = _message(node, value).text("an operator's name")
        elif number == 7:
            domain = _message(node, value).text("an operator's domain")
        elif number == 5:
            attribute = _message(node, value)
            for part, content in attribute.fields():
                if part in (5, 10):
                    _read_tensor(_message(attribute, content), found)
                elif part in (22, 23):
                    _read_sparse(_message(attribute, content), found)
                elif part in (6, 11):
                    _read_graph(_message(attribute, content), found, depth + 1)
    if not kind:
        raise node.fail("a node without an operator; the file is damaged", node.start)
    domain = "" if domain == "ai.onnx" else domain
    found.operations.append(Operation(name or made, kind, domain))


def _read_tensor(tensor: Message, found: _Found) -> Weight:
    name, dtype, location = "", "", 0
    shape: list[int] = []
    raw: Message | None = None
    entries: dict[str, str] = {}
    for number, value in tensor.fields():
        if number == 1:
            shape += [signed(dim) for dim in _numbers(value)]
        elif number == 2:
            dtype = DTYPES.get(_number(tensor, value), f"type {value}")
        elif number == 8:
            name = _message(tensor, value).text("a tensor's name")
        elif number == 9:
            raw = _message(tensor, value)
        elif number == 13:
            key, text = _read_entry(_message(tensor, value))
            entries[key] = text
        elif number == 14:
            location = _number(tensor, value)
    if any(dim < 0 for dim in shape):
        raise tensor.fail(f"tensor '{name}' has shape {shape}", tensor.start)
    wanted = stored_bytes(dtype, shape)
    external = None
    if location == EXTERNAL:
        external = found.external.check(name, entries, wanted)
    elif raw is not None and wanted is not None and raw.end - raw.start != wanted:
        raise tensor.fail(
            f"tensor '{name}' of {dtype} {shape} has {raw.end - raw.start} bytes, expected "
            f"{wanted}; the file is damaged",
            raw.start,
        )
    return Weight(name, dtype, tuple(shape), wanted or 0, external)


def _read_sparse(sparse: Message, found: _Found) -> Weight:
    dense: list[int] = []
    values: Weight | None = None
    for number, value in sparse.fields():
        if number in (1, 2):
            tensor = _read_tensor(_message(sparse, value), found)
            values = tensor if number == 1 else values
        elif number == 3:
            dense += [signed(dim) for dim in _numbers(value)]
    if values is None or any(dim < 0 for dim in dense):
        raise sparse.fail("a sparse tensor without values or shape", sparse.start)
    return Weight(values.name, values.dtype, tuple(dense), values.nbytes, values.external)


def _read_entry(entry: Message) -> tuple[str, str]:
    parts = {n: _message(entry, v).text("a key of external data") for n, v in entry.fields()}
    return parts.get(1, ""), parts.get(2, "")


def _read_value(info: Message) -> TensorSpec:
    name, dtype = "", "nothing"
    shape: tuple[Dim, ...] | None = None
    for number, value in info.fields():
        if number == 1:
            name = _message(info, value).text("a value's name")
        elif number == 2:
            kind = _message(info, value)
            for part, content in kind.fields():
                names = {1: "tensor", 4: "sequence", 5: "map", 8: "sparse tensor", 9: "optional"}
                if part == 1:
                    dtype, shape = _read_type(_message(kind, content))
                elif part in names:
                    dtype = names[part]
    return TensorSpec(name, dtype, shape)


def _read_type(kind: Message) -> tuple[str, tuple[Dim, ...] | None]:
    dtype = "nothing"
    shape: tuple[Dim, ...] | None = None
    for number, value in kind.fields():
        if number == 1:
            dtype = DTYPES.get(_number(kind, value), f"type {value}")
        elif number == 2:
            dims = _message(kind, value)
            shape = tuple(_read_dim(_message(dims, dim)) for n, dim in dims.fields() if n == 1)
    return dtype, shape


def _read_dim(dim: Message) -> Dim:
    found: Dim = None
    for number, value in dim.fields():
        if number == 1:
            size = signed(_number(dim, value))
            found = size if size >= 0 else None
        elif number == 2:
            found = _message(dim, value).text("the name of a size") or None
    return found


def _message(parent: Message, value: int | Message) -> Message:
    if isinstance(value, int):
        raise parent.fail("a number where a message was expected", parent.start)
    return value


def _number(parent: Message, value: int | Message) -> int:
    if not isinstance(value, int):
        raise parent.fail("a message where a number was expected", parent.start)
    return value


def _numbers(value: int | Message) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    else:
        yield from value.numbers()
