"""FlatBuffers, read with every offset checked.

The format: https://flatbuffers.dev/internals/. Fields are known by their number in the schema.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from penstock.errors import FormatError

Buffer = bytes | mmap.mmap
MAX_TABLES = 1 << 20  # in one vector; entries may be the same table, so a small file can name many


class Table:
    """A table at an offset of a file; `what` names it in errors."""

    __slots__ = ("_at", "_data", "_path", "_size", "_slots", "_vtable", "what")

    def __init__(self, path: Path, data: Buffer, at: int, what: str) -> None:
        self._path = path
        self._data = data
        self._at = at
        self.what = what
        self._vtable = at - self._read("<i", at)
        self._slots, self._size = self._read("<H", self._vtable), self._read("<H", self._vtable + 2)
        if self._slots < 4 or self._vtable + self._slots > len(data):
            raise self.fail(f"its list of fields has {self._slots} bytes", self._vtable)
        if self._size < 4 or at + self._size > len(data):
            raise self.fail(f"it has {self._size} bytes", at)

    def fail(self, what: str, at: int | None = None) -> FormatError:
        """Something is wrong in this table."""
        where = self._at if at is None else at
        return FormatError(
            f"{self._path}: at offset {where}: {self.what}: {what}; the file is damaged, fetch or "
            "convert it again"
        )

    def _read(self, code: str, at: int) -> int:
        if at < 0 or at + struct.calcsize(code) > len(self._data):
            raise FormatError(
                f"{self._path}: at offset {at}: {self.what} lies outside of the file, which has "
                f"{len(self._data)} bytes; it is cut short or damaged, fetch it again"
            )
        value: int = struct.unpack_from(code, self._data, at)[0]
        return value

    def _place(self, field: int, nbytes: int) -> int | None:
        slot = 4 + 2 * field
        if slot + 2 > self._slots:
            return None
        offset = self._read("<H", self._vtable + slot)
        if offset == 0:
            return None
        if offset < 4 or offset + nbytes > self._size:
            raise self.fail(f"field {field} lies outside of it")
        return self._at + offset

    def number(self, field: int, code: str = "i", default: int = 0) -> int:
        """A whole number of a struct code."""
        at = self._place(field, struct.calcsize("<" + code))
        return default if at is None else self._read("<" + code, at)

    def _follow(self, field: int) -> int | None:
        at = self._place(field, 4)
        return None if at is None else at + self._read("<I", at)

    def table(self, field: int, what: str) -> Table | None:
        """A table in this one."""
        at = self._follow(field)
        return None if at is None else Table(self._path, self._data, at, what)

    def vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        """(offset of the first item, number of items); (0, 0) where it is not there."""
        at = self._follow(field)
        if at is None:
            return 0, 0
        count = self._read("<I", at)
        if at + 4 + count * item_bytes > len(self._data):
            raise self.fail(f"field {field} announces {count} items, more than the file holds", at)
        return at + 4, count

    def numbers(self, field: int, code: str = "i") -> tuple[int, ...]:
        """A vector of whole numbers."""
        at, count = self.vector(field, struct.calcsize("<" + code))
        return struct.unpack_from(f"<{count}{code}", self._data, at)

    def reals(self, field: int) -> tuple[float, ...]:
        """A vector of floats."""
        at, count = self.vector(field, 4)
        return struct.unpack_from(f"<{count}f", self._data, at)

    def string(self, field: int) -> str | None:
        """A string; it must end with a zero, since readers in C stop at nothing else."""
        at, count = self.vector(field, 1)
        if at == 0:
            return None
        if self._read("<B", at + count) != 0:
            raise self.fail(f"field {field} is a string without an end", at)
        return bytes(self._data[at : at + count]).decode("utf-8", errors="replace")

    def tables(self, field: int, what: str) -> Iterator[Table]:
        """A vector of tables."""
        at, count = self.vector(field, 4)
        if count > MAX_TABLES:
            raise self.fail(f"field {field} announces {count} tables, more than {MAX_TABLES}", at)
        for number in range(count):
            place = at + 4 * number
            found = place + self._read("<I", place)
            yield Table(self._path, self._data, found, f"{what} {number}")


def root(path: Path, data: Buffer, what: str) -> Table:
    """The table that the file starts from."""
    if len(data) < 8:
        raise FormatError(f"{path}: {len(data)} bytes are too few; the file is cut short")
    return Table(path, data, struct.unpack_from("<I", data, 0)[0], what)
