"""Small ONNX and TFLite models as bytes, for the self-test and for tests.

Each adds a constant to its input. No library writes them, so none is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.loaders.protobuf import encode

ADDEND = (10.0, 20.0, 30.0)
_FLOAT32_ONNX, _FLOAT32_TFLITE, _ADD_TFLITE = 1, 0, 0
_ALIGNMENT = 16


def tiny_onnx() -> bytes:
    """y = x + (10, 20, 30) in float32, x of N x 3."""
    constant = encode((1, 3), (2, _FLOAT32_ONNX), (8, "c"), (9, struct.pack("<3f", *ADDEND)))
    node = encode((1, "x"), (1, "c"), (2, "y"), (3, "adder"), (4, "Add"))
    ports = [(11, onnx_value("x", ("N", 3))), (12, onnx_value("y", ("N", 3)))]
    return onnx_model([(1, node), (2, "tiny"), (5, constant), *ports])


def onnx_model(graph: Sequence[tuple[int, Any]], *opsets: tuple[str, int]) -> bytes:
    """A model around the fields of a graph."""
    domains = [encode((1, domain), (2, version)) for domain, version in opsets or [("", 13)]]
    return encode(
        (1, 8), (2, "penstock"), (7, encode(*graph)), *[(8, domain) for domain in domains]
    )


def onnx_value(name: str, shape: Sequence[int | str], dtype: int = _FLOAT32_ONNX) -> bytes:
    """An input or output."""
    dims = [encode((2, dim) if isinstance(dim, str) else (1, dim)) for dim in shape]
    kind = encode((1, dtype), (2, encode(*[(1, dim) for dim in dims])))
    return encode((1, name), (2, encode((1, kind))))


def tiny_tflite() -> bytes:
    """y = x + (10, 20, 30) in float32, x of 1 x 3."""
    return tflite_model(
        tensors=[tflite_tensor("x"), tflite_tensor("c", shape=(3,), buffer=1), tflite_tensor("y")],
        nodes=[FlatTable({0: 0, 1: [0, 1], 2: [2]})],
        operators=[FlatTable({0: _ADD_TFLITE})],
        buffers=[struct.pack("<3f", *ADDEND)],
    )


def tflite_tensor(
    name: str,
    shape: Sequence[int] = (1, 3),
    dtype: int = _FLOAT32_TFLITE,
    buffer: int = 0,
    signature: Sequence[int] = (),
    quantization: tuple[float, int] | None = None,
) -> FlatTable:
    """A tensor; `quantization`: scale and zero point."""
    fields: dict[int, Any] = {0: list(shape), 1: dtype, 2: buffer, 3: name}
    if quantization is not None:
        scale, zero = struct.pack("<f", quantization[0]), struct.pack("<q", quantization[1])
        fields[4] = FlatTable({2: Vector(scale, 4), 3: Vector(zero, 8)})
    if signature:
        fields[7] = list(signature)
    return FlatTable(fields)


def tflite_model(
    tensors: list[FlatTable],
    nodes: list[FlatTable],
    operators: list[FlatTable],
    buffers: Sequence[bytes] = (),
    ports: tuple[list[int], list[int]] = ([0], [2]),
    others: Sequence[FlatTable] = (),
    signatures: Sequence[FlatTable] = (),
) -> bytes:
    """A model of one subgraph, and perhaps others; buffer 0 is the empty one."""
    main = FlatTable({0: tensors, 1: ports[0], 2: ports[1], 3: nodes, 4: "main"})
    stored = [FlatTable({}), *(FlatTable({0: data}) for data in buffers)]
    fields = {0: 3, 1: operators, 2: [main, *others], 3: "penstock", 4: stored}
    if signatures:
        fields[7] = list(signatures)
    return serialize(FlatTable(fields))


@dataclass(frozen=True)
class Vector:
    """Numbers of a vector as bytes."""

    data: bytes
    item_bytes: int


@dataclass(frozen=True)
class Scalar:
    """A number in a table, as bytes."""

    data: bytes


@dataclass(frozen=True)
class FlatTable:
    """A table of a FlatBuffer: what is in each field, by its number.

    Whole numbers take 4 bytes each, a Scalar what it has. A string, bytes, a Vector, a list of
    whole numbers, a list of tables and a table are stored behind it.
    """

    fields: dict[int, Any] = field(default_factory=dict)


def serialize(table: FlatTable) -> bytes:
    """A TFLite file with this table as its root. Offsets all point forward, as they must."""
    out = bytearray(struct.pack("<I4s", 0, b"TFL3"))
    struct.pack_into("<I", out, 0, _write(out, table))
    return bytes(out)


def _write(out: bytearray, value: Any) -> int:
    """Append a value; where it begins."""
    if isinstance(value, FlatTable):
        return _write_table(out, value)
    if isinstance(value, list) and value and isinstance(value[0], FlatTable):
        start = len(out)
        out += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for place, table in enumerate(value):
            at = start + 4 + 4 * place
            struct.pack_into("<I", out, at, _write(out, table) - at)
        return start
    if isinstance(value, str):
        data, count = value.encode() + b"\0", len(value.encode())
    elif isinstance(value, bytes):
        data, count = value, len(value)
    elif isinstance(value, Vector):
        data, count = value.data, len(value.data) // value.item_bytes
    else:
        data, count = struct.pack(f"<{len(value)}i", *value), len(value)
    out += bytes(-(len(out) + 4) % _ALIGNMENT)
    start = len(out)
    out += struct.pack("<I", count) + data
    out += bytes(-len(out) % 4)
    return start


def _write_table(out: bytearray, table: FlatTable) -> int:
    slots = max(table.fields, default=-1) + 1
    offsets, size = [0] * slots, 4
    for number, value in sorted(table.fields.items()):
        offsets[number] = size
        size += len(value.data) if isinstance(value, Scalar) else 4
    vtable = struct.pack(f"<HH{slots}H", 4 + 2 * slots, size, *offsets)
    begin = len(out)
    out += vtable + bytes(-len(vtable) % 4)
    start = len(out)
    out += struct.pack("<i", start - begin) + bytes(size - 4)
    for number, value in table.fields.items():
        at = start + offsets[number]
        if isinstance(value, Scalar):
            out[at : at + len(value.data)] = value.data
        elif isinstance(value, int):
            struct.pack_into("<i", out, at, value)
        else:
            struct.pack_into("<I", out, at, _write(out, value) - at)
    return start
