"""Protocol buffers on the wire, read with every length checked, and written.

The format: https://protobuf.dev/programming-guides/encoding/. ONNX files are one message.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from penstock.errors import FormatError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10


class Message:
    """A range of a file that holds one message."""

    __slots__ = ("data", "end", "path", "start")

    def __init__(self, path: Path, data: bytes | mmap.mmap, start: int, end: int) -> None:
        self.path = path
        self.data = data
        self.start = start
        self.end = end

    def fail(self, what: str, at: int) -> FormatError:
        return FormatError(f"{self.path}: at offset {at}: {what}")

    def fields(self) -> Iterator[tuple[int, int | Message]]:
        """(field number, value) in the order of the file: an int, or a range of bytes."""
        at = self.start
        while at < self.end:
            begin = at
            tag, at = self._varint(at)
            number, wire = tag >> 3, tag & 7
            if number == 0:
                raise self.fail("field number 0, which no message has; the file is damaged", begin)
            if wire == VARINT:
                value, at = self._varint(at)
                yield number, value
            elif wire == BYTES:
                length, at = self._varint(at)
                if length > self.end - at:
                    raise self.fail(
                        f"field {number} needs {length} bytes but its message ends at {self.end}; "
                        "the file is cut short or damaged, fetch it again",
                        begin,
                    )
                yield number, Message(self.path, self.data, at, at + length)
                at += length
            elif wire in (FIXED32, FIXED64):
                size = 4 if wire == FIXED32 else 8
                if size > self.end - at:
                    raise self.fail("a number is cut short; the file is damaged", begin)
                yield number, int.from_bytes(self.data[at : at + size], "little")
                at += size
            else:
                raise self.fail(f"wire type {wire}, expected 0, 1, 2 or 5", begin)

    def _varint(self, at: int) -> tuple[int, int]:
        value, shift, begin = 0, 0, at
        while at < self.end and at - begin < MAX_VARINT_BYTES:
            byte = self.data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value & (1 << 64) - 1, at
        raise self.fail("a number does not end; the file is cut short or damaged", begin)

    def text(self, what: str) -> str:
        """The bytes as a string."""
        try:
            return bytes(self.data[self.start : self.end]).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8 ({error.reason})", self.start) from None

    def numbers(self) -> Iterator[int]:
        """A packed list of whole numbers."""
        at = self.start
        while at < self.end:
            value, at = self._varint(at)
            yield value


def signed(value: int) -> int:
    """A varint of type int64 or int32."""
    return value - (1 << 64) if value >= 1 << 63 else value


def encode(*fields: tuple[int, int | float | str | bytes]) -> bytes:
    """A message: (field number, value), a float as 32 bits; a message in it is its bytes."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, float):
            out += _encode_varint(number << 3 | FIXED32) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += _encode_varint(number << 3 | VARINT) + _encode_varint(value & (1 << 64) - 1)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _encode_varint(number << 3 | BYTES) + _encode_varint(len(data)) + data
    return bytes(out)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
