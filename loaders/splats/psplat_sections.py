"""What all segments of a .psplat file share: codebooks and nets. docs/psplat-format.md."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import FormatError
from penstock.loaders.splats.codebook import BLOCK, Codebook, Map
from penstock.loaders.splats.encoded import Net
from penstock.loaders.splats.psplat_layout import BookEntry, Head
from penstock.quant.entropy import RESIDUAL, ChannelCoding, coding_rows

Bytes = NDArray[np.uint8]

SHEET_NBYTES = 8
"""Of a codebook's number, while the section is decoded, beside the number itself."""
MAX_NETS = 64
TABLE_HIGH = ChannelCoding(mode=RESIDUAL, predictor=1, slowest=5)
TABLE_LOW = ChannelCoding(raw=16)
"""Of a table's numbers, cut into their upper and lower 16 bits."""


@contextmanager
def named(path: Path, name: str, offset: int) -> Iterator[None]:
    """Errors of the decoder, which knows no files, become those of one."""
    try:
        yield
    except FormatError as error:
        raise FormatError(
            f"{path}: at offset {offset}: {name}: {error}; the file is damaged, export it again"
        ) from None


def read_books(head: Head, payload: Bytes) -> list[Codebook]:
    """The codebooks of a file, whose section's checksum is right.

    Raises:
        FormatError: the section is damaged.
    """
    shapes: list[tuple[int, int]] = []
    codings: list[tuple[ChannelCoding, int]] = []
    for entry in head.books:
        if entry.table:
            shapes += [(entry.table, 1)] * 2
            codings += [(TABLE_HIGH, 1 << 16), (TABLE_LOW, 1 << 16)]
        if entry.coding is not None:
            shapes.append((entry.size, entry.columns))
            codings.append((entry.coding, entry.levels))
    sheets: list[NDArray[np.uint16]] = []
    if shapes:
        with named(head.path, "the codebook section", head.books_section.offset):
            sheets = _native.decode_sheets(payload, shapes, coding_rows(codings))
    books = []
    for number, entry in enumerate(head.books):
        numbers = None
        if entry.table:
            numbers = join_floats(sheets[0], sheets[1])
            del sheets[:2]
        levels = None
        if entry.coding is not None:
            levels = sheets.pop(0).reshape(entry.size, entry.columns)
        book = _book(entry, levels, numbers)
        problem = book.problem()
        if problem is not None:
            raise FormatError(
                f"{head.path}: at offset {head.books_section.offset}: codebook {number} has "
                f"{problem}; the file is damaged, export it again"
            )
        _ = book.entries  # made here, before several threads ask for them
        books.append(book)
    return books


def _stored_levels(entry: BookEntry) -> int:
    return 0 if entry.coding is None else entry.size * entry.columns


def book_nbytes(entry: BookEntry) -> int:
    """Of the codebook in memory: entries, levels and its table."""
    levels = _stored_levels(entry) or (entry.size if entry.map is Map.HALF else 0)
    return 4 * entry.size * entry.columns + 2 * levels + 4 * entry.table


def _book(
    entry: BookEntry, levels: NDArray[np.uint16] | None, numbers: NDArray[np.float32] | None
) -> Codebook:
    if levels is None and entry.map is Map.HALF:  # entry k is level k
        levels = np.arange(entry.size, dtype=np.uint16)[:, None]
    return Codebook(
        entry.map, entry.size, entry.columns, entry.levels, levels, entry.low, entry.step, numbers
    )


def split_floats(
    numbers: NDArray[np.float32],
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Upper and lower 16 bits of 32-bit numbers that ascend as the float32 numbers do."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    negative = (bits >> np.uint32(31)).astype(bool)
    ordered = np.where(negative, ~bits, bits ^ np.uint32(0x80000000)).astype(np.uint32)
    return (ordered >> np.uint32(16)).astype(np.uint16), ordered.astype(np.uint16)


def join_floats(upper: NDArray[np.uint16], lower: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The inverse of `split_floats`."""
    ordered = upper.astype(np.uint32) << np.uint32(16) | lower
    positive = (ordered >> np.uint32(31)).astype(bool)
    bits = np.where(positive, ordered ^ np.uint32(0x80000000), ~ordered).astype(np.uint32)
    return bits.view(np.float32)


def read_nets(path: Path, data: Bytes) -> tuple[Net, ...]:
    """`u32` count; of each `u8` and name, `u32` and float16 numbers.

    Raises:
        FormatError: the section is damaged.
    """
    raw, at = data.tobytes(), 0

    def take(count: int, what: str) -> bytes:
        nonlocal at
        if count > len(raw) - at:
            raise FormatError(
                f"{path}: the nets section: {what} needs {count} bytes at byte {at} of {len(raw)}; "
                "the file is damaged, export it again"
            )
        at += count
        return raw[at - count : at]

    if not raw:
        return ()
    nets = []
    total = struct.unpack("<I", take(4, "the count"))[0]
    if total > MAX_NETS:
        raise FormatError(
            f"{path}: the nets section: {total} nets, expected at most {MAX_NETS}; the file is "
            "damaged, export it again"
        )
    for number in range(total):
        name = take(take(1, f"length of the name of net {number}")[0], f"name of net {number}")
        count = struct.unpack("<I", take(4, f"length of net {number}"))[0]
        values = np.frombuffer(take(2 * count, f"net {number}"), "<f2").astype(np.float16)
        if not (name.isascii() and np.isfinite(values).all()):
            raise FormatError(
                f"{path}: the nets section: net {number} has a name that is not ASCII or numbers "
                "that are not finite; the file is damaged, export it again"
            )
        nets.append(Net(name.decode("ascii"), values))
    if at != len(raw):
        raise FormatError(
            f"{path}: the nets section: ends at byte {at} of {len(raw)}; the file is damaged"
        )
    return tuple(nets)


def reading_nbytes(head: Head) -> int:
    """Memory that reading codebooks and nets takes for a while beside them, at most."""
    sheets = [max(book.table, _stored_levels(book)) for book in head.books]
    sections = head.books_section.nbytes + 2 * head.nets_section.nbytes
    return sections + SHEET_NBYTES * max(sheets, default=0) + 64 * BLOCK
