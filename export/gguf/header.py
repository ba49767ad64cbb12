"""GGUF headers: metadata copied byte for byte from the source, some keys replaced.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: magic, version, counts, key-value
entries, tensor infos, padding.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.errors import FormatError
from penstock.export.model_spec import MetadataValue
from penstock.loaders.gguf_file import GGUFFile

_FIRST_ENTRY = 24  # magic, version, two counts
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_ARRAY_TYPES = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6,
    "bool": 7, "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of the new file; shape in NumPy order."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    nbytes: int


def stored_entries(file: GGUFFile) -> dict[str, bytes]:
    """Key -> the whole entry as it stands in a file that `read_gguf` has checked."""
    entries, start = {}, _FIRST_ENTRY
    for key in file.metadata:
        end = _entry_end(file.header, start, key)
        entries[key] = file.header[start:end]
        start = end
    return entries


def encode_entry(key: str, value: MetadataValue) -> bytes:
    """A key and a value: ints as u32 or i64, floats as f32."""
    return _string(key) + _value(value)


def encode_header(
    entries: Mapping[str, bytes], tensors: Sequence[TensorEntry], alignment: int
) -> bytes:
    """Everything before the tensors' bytes, padded."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(entries)), *entries.values()]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(_string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        parts.append(struct.pack("<IQ", tensor.ggml_type, offset))
        offset += -(-tensor.nbytes // alignment) * alignment
    header = b"".join(parts)
    return header + bytes(-len(header) % alignment)


def _entry_end(header: bytes, start: int, key: str) -> int:
    name = key.encode()
    at = start + 8 + len(name)
    if header[start + 8 : at] != name:
        raise FormatError(f"at offset {start}: expected metadata key '{key}'; please report")
    (kind,) = struct.unpack_from("<I", header, at)
    at += 4
    if kind != _ARRAY:
        return _string_end(header, at) if kind == _STRING else at + _SIZES[kind]
    kind, count = struct.unpack_from("<IQ", header, at)
    at += 12
    if kind != _STRING:
        return int(at + count * _SIZES[kind])
    for _ in range(count):
        at = _string_end(header, at)
    return at


def _string_end(header: bytes, at: int) -> int:
    (length,) = struct.unpack_from("<Q", header, at)
    return at + 8 + int(length)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: MetadataValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        small = 0 <= value < 1 << 32
        return struct.pack("<II", 4, value) if small else struct.pack("<Iq", 11, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, list):
        head = struct.pack("<IIQ", _ARRAY, _STRING, len(value))
        return head + b"".join(_string(text) for text in value)
    kind = _ARRAY_TYPES[value.dtype.name]
    little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
    return struct.pack("<IIQ", _ARRAY, kind, value.size) + little.tobytes()
