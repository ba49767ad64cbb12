"""A strict reader of GGUF headers: nothing in the file is believed before it is checked.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's own
reader maps the file and trusts counts and lengths; a runtime that opens downloads cannot.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 3 has the layout of 2, and big-endian files beside it
MAX_HEADER_BYTES = 512 << 20  # tokenizers of 256k entries take about 10 MB
MAX_TENSORS = 1 << 17
MAX_KEYS = 1 << 17
MAX_DIMS = 4

# ggml type number -> (elements in a block, bytes of a block)
TYPE_SIZES: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip
TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

Value = str | int | float | bool | list[str] | NDArray[np.generic]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: llama.cpp's name of it.
        shape: NumPy order, slowest first; ggml stores the reverse.
        type: ggml type number.
        offset: of its first byte in the file.
        nbytes: its size.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int

    @property
    def type_name(self) -> str:
        return TYPE_NAMES.get(self.type, f"type {self.type}")


@dataclass(frozen=True)
class GGUFFile:
    """A checked header: metadata and where the tensors are."""

    path: Path
    size: int
    version: int
    metadata: dict[str, Value]
    value_offsets: dict[str, int]  # of each key's value in the file (an array's: its first element)
    tensors: dict[str, TensorInfo]
    data_offset: int
    alignment: int
    header: bytes = field(repr=False)  # the bytes before the tensor data

    def get_str(self, key: str, default: str | None = None) -> str:
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string", value)
        return value

    def get_int(
        self, key: str, default: int | None = None, low: int = 0, high: int = 2**31 - 1
    ) -> int:
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"a whole number from {low} to {high}", value)
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise self.wrong(key, "a finite number", value)
        return float(value)

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def get_array(self, key: str, length: int | None = None) -> NDArray[np.generic]:
        value = self.metadata.get(key)
        if not isinstance(value, np.ndarray) or (length is not None and value.size != length):
            wanted = "an array of numbers" if length is None else f"an array of {length} numbers"
            raise self.wrong(key, wanted, value)
        return value

    def wrong(self, key: str, expected: str, value: object) -> FormatError:
        seen = "is missing" if value is None else f"is {_short(value)}"
        return FormatError(
            f"{self.path}: metadata key '{key}' {seen}; expected {expected}. "
            "The file is damaged or was made by another tool; export it again."
        )


def _short(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.size} {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Cursor:
    """Reads fields of the header, never past the file's end or the header's limit."""

    def __init__(self, path: Path, handle: BinaryIO, size: int) -> None:
        self.path = path
        self.handle = handle
        self.size = size
        self.offset = 0

    def fail(self, what: str, at: int | None = None) -> FormatError:
        where = self.offset if at is None else at
        return FormatError(f"{self.path}: at offset {where}: {what}")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.offset:
            raise self.fail(
                f"{what} needs {count} bytes but the file ends at {self.size}; "
                "the file is cut short or damaged, fetch it again"
            )
        if self.offset + count > MAX_HEADER_BYTES:
            raise self.fail(f"the header is larger than {MAX_HEADER_BYTES} bytes; not a sane file")
        data = self.handle.read(count)
        if len(data) != count:
            raise self.fail(f"{what}: short read")
        self.offset += count
        return data

    def number(self, code: str, what: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(
            "<" + code, self.take(struct.calcsize("<" + code), what)
        )[0]
        return value

    def count(self, code: str, what: str, limit: int) -> int:
        at = self.offset
        value = int(self.number(code, what))
        if value > limit:
            raise self.fail(f"{what} is {value}, more than {limit}; the file is damaged", at)
        return value

    def string(self, what: str) -> str:
        at = self.offset
        length = self.count("Q", f"length of {what}", self.size)
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(
                f"{what} is not UTF-8 ({error.reason}); the file is damaged", at
            ) from None

    def value(self, key: str) -> tuple[Value, int]:
        at = self.offset
        kind = int(self.number("I", f"type of '{key}'"))
        if kind == _STRING:
            start = self.offset
            return self.string(f"value of '{key}'"), start
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _SCALARS:
            raise self.fail(f"'{key}' has unknown value type {kind}; expected 0 to 12", at)
        start = self.offset
        if kind == 7:
            return bool(self.count("B", f"value of '{key}'", 1)), start
        return self.number(_SCALARS[kind], f"value of '{key}'"), start

    def array(self, key: str) -> tuple[Value, int]:
        at = self.offset
        kind = int(self.number("I", f"element type of '{key}'"))
        length = self.count("Q", f"length of '{key}'", self.size)
        start = self.offset
        if kind == _STRING:
            if length * 8 > self.size - self.offset:
                raise self.fail(f"'{key}' announces {length} strings, more than the file holds", at)
            return [self.string(f"element {i} of '{key}'") for i in range(length)], start
        if kind not in _SCALARS:
            raise self.fail(
                f"'{key}' has unknown element type {kind}; nested arrays are not used", at
            )
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        return np.frombuffer(
            self.take(length * dtype.itemsize, f"elements of '{key}'"), dtype
        ), start


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Parse and check the header of a GGUF file.

    Raises:
        FormatError: not GGUF, damaged, truncated, or of another version.
        StorageError: the file cannot be read.
    """
    file_path = Path(path)
    try:
        size = file_path.stat().st_size
        with open(file_path, "rb") as handle:
            return _parse(_Cursor(file_path, handle, size))
    except OSError as error:
        raise StorageError(f"{file_path}: cannot be read: {error.strerror or error}") from None


def _parse(c: _Cursor) -> GGUFFile:
    magic = c.take(4, "the magic") if c.size >= 4 else b""
    if magic != MAGIC:
        raise FormatError(
            f"{c.path}: at offset 0: not a GGUF file (starts with {magic!r}, expected {MAGIC!r})"
        )
    version = int(c.number("I", "the version"))
    if version not in VERSIONS:
        hint = "use a newer Penstock, or export again"
        if version and version & 0xFFFF == 0:
            hint = "it is big-endian; convert it with gguf-convert-endian, of the gguf package"
        elif version < min(VERSIONS):
            hint = "it is too old, also for llama.cpp; convert the original model again"
        raise c.fail(f"GGUF version is {version}, expected 2 or 3; {hint}", 4)
    tensor_count = c.count("Q", "the number of tensors", MAX_TENSORS)
    key_count = c.count("Q", "the number of metadata keys", MAX_KEYS)
    metadata: dict[str, Value] = {}
    value_offsets: dict[str, int] = {}
    for _ in range(key_count):
        at = c.offset
        key = c.string("a metadata key")
        if key in metadata:
            raise c.fail(f"metadata key '{key}' appears twice", at)
        metadata[key], value_offsets[key] = c.value(key)
    alignment = metadata.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or not 8 <= alignment <= 1 << 20
        or alignment & (alignment - 1)
    ):
        raise c.fail(
            f"general.alignment is {alignment!r}, expected a power of two from 8 to 1048576"
        )
    raw = [_tensor_info(c) for _ in range(tensor_count)]
    data_offset = -(-c.offset // alignment) * alignment
    tensors = _place(c, raw, data_offset, alignment)
    c.handle.seek(0)
    header = c.handle.read(min(data_offset, c.size))
    return GGUFFile(
        c.path, c.size, version, metadata, value_offsets, tensors, data_offset, alignment, header
    )


def _tensor_info(c: _Cursor) -> tuple[str, tuple[int, ...], int, int, int]:
    at = c.offset
    name = c.string("a tensor name")
    dims = c.count("I", f"dimensions of '{name}'", MAX_DIMS)
    shape = tuple(c.count("Q", f"shape of '{name}'", 1 << 40) for _ in range(dims))[::-1]
    kind = int(c.number("I", f"type of '{name}'"))
    offset = int(c.number("Q", f"offset of '{name}'"))
    if kind not in TYPE_SIZES:
        raise c.fail(f"tensor '{name}' has unknown type {kind}", at)
    block, block_bytes = TYPE_SIZES[kind]
    elements = math.prod(shape)
    if not shape or elements == 0 or shape[-1] % block:
        raise c.fail(f"tensor '{name}' has shape {shape}, which its type cannot have", at)
    return name, shape, kind, offset, elements // block * block_bytes


def _place(
    c: _Cursor, raw: list[tuple[str, tuple[int, ...], int, int, int]], base: int, alignment: int
) -> dict[str, TensorInfo]:
    """Absolute offsets, checked: aligned, inside the file, not overlapping."""
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset, nbytes in raw:
        if name in tensors:
            raise c.fail(f"tensor '{name}' appears twice")
        start = base + offset
        if offset % alignment:
            raise c.fail(
                f"tensor '{name}' is at offset {start}, not a multiple of {alignment}", start
            )
        if start + nbytes > c.size:
            raise c.fail(
                f"tensor '{name}' needs bytes {start} to {start + nbytes} but the file has "
                f"{c.size}; the file is cut short, fetch it again",
                start,
            )
        tensors[name] = TensorInfo(name, shape, kind, start, nbytes)
    end, previous = base, ""
    for info in sorted(tensors.values(), key=lambda t: t.offset):
        if info.offset < end:
            raise c.fail(f"tensors '{previous}' and '{info.name}' overlap", info.offset)
        end, previous = info.offset + info.nbytes, info.name
    return tensors
