"""Rows of a safetensors file, read where they lie.

The format: 8 bytes of header length, a JSON header, the data. The safetensors package maps the
whole file (which counts as memory of the process) and gives bfloat16 only through torch; here a
`pread` takes just the rows that are asked for, and nothing but numpy is needed.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import struct
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError, UnsupportedModelError

MAX_HEADER_BYTES = 100_000_000  # the safetensors package's own limit
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_READ_BYTES = 32 << 20  # converted to float32 at a time


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `offset` of its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """One file. Raises FormatError when its header does not fit the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
        weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size
        self.tensors = self._header()

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of a tensor as float32; (len(ids), columns). A vector has rows of one element."""
        info = self.tensors[name]
        dtype = _DTYPES.get(info.dtype)
        if dtype is None:
            raise UnsupportedModelError(
                f"{self.path}: tensor '{name}' is {info.dtype}; expected {', '.join(_DTYPES)}. "
                "Export the "
                "original checkpoint, not a quantized one."
            )
        columns = math.prod(info.shape[1:])
        if len(ids) and not (0 <= int(ids.min()) and int(ids.max()) < info.shape[0]):
            raise FormatError(
                f"{self.path}: tensor '{name}' has {info.shape[0]} rows, too few for this model"
            )
        out = np.empty((len(ids), columns), np.float32)
        row_bytes = columns * np.dtype(dtype).itemsize
        for first, last in _runs(ids, max(1, _READ_BYTES // max(1, row_bytes))):
            raw = np.empty(((last - first), columns), dtype)
            self._read(info.offset + int(ids[first]) * row_bytes, raw.view(np.uint8).reshape(-1))
            out[first:last] = _float32(raw)
        return out

    def _read(self, offset: int, out: NDArray[np.uint8]) -> None:
        view, done = memoryview(out.data), 0
        while done < len(view):
            try:
                got = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise StorageError(f"{self.path}: read at {offset}: {error.strerror}") from None
            if got == 0:
                raise StorageError(
                    f"{self.path}: the file ends at {offset + done}, it was cut while reading"
                )
            done += got

    def _header(self) -> dict[str, StoredTensor]:
        head = os.pread(self._fd, 8, 0)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER_BYTES, self.size - 8):
            raise FormatError(
                f"{self.path}: at offset 0: header length {length} does not fit the file's "
                f"{self.size} bytes; "
                "not a safetensors file, or cut short (a Git LFS pointer?): fetch it again"
            )
        try:
            entries = json.loads(os.pread(self._fd, length, 8))
            tensors = {
                str(name): self._entry(str(name), entry, 8 + length)
                for name, entry in entries.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(
                f"{self.path}: its header is damaged ({error}); fetch it again"
            ) from None
        return tensors

    def _entry(self, name: str, entry: dict[str, object], base: int) -> StoredTensor:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
            raise ValueError(f"tensor '{name}'")
        begin, end = (int(o) for o in offsets)
        sizes = tuple(int(s) for s in shape)
        kind = _DTYPES.get(str(dtype))
        wanted = math.prod(sizes) * np.dtype(kind).itemsize if kind else end - begin
        if (
            not 0 <= begin <= end <= self.size - base
            or min(sizes, default=1) < 0
            or end - begin != wanted
        ):
            raise FormatError(
                f"{self.path}: tensor '{name}' {dtype} {sizes} at {begin} to {end} does not fit "
                "the file's "
                f"{self.size} bytes; the file is cut short or damaged, fetch it again"
            )
        return StoredTensor(str(dtype), sizes, base + begin, end - begin)


def _float32(raw: NDArray[np.generic]) -> NDArray[np.float32]:
    if raw.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def _runs(ids: NDArray[np.int64], longest: int) -> list[tuple[int, int]]:
    """Stretches of consecutive ids, none over `longest`: (first, last + 1) positions in `ids`."""
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    edges = [0, *breaks.tolist(), len(ids)] if len(ids) else [0]
    runs: list[tuple[int, int]] = []
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        runs += [(at, min(at + longest, last)) for at in range(first, last, longest)]
    return runs
