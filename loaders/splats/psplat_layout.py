"""The head of a .psplat file: header and tables, written and read. docs/psplat-format.md.

Nothing in a head is believed before it is checked, and all of it is checked before any other part
of the file is looked at: counts, offsets and lengths against the file's size, then every field.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from penstock import _native
from penstock.errors import FormatError
from penstock.loaders.splats.codebook import MAX_COLUMNS, MAX_ENTRIES, MAX_MAGNITUDE, Map
from penstock.loaders.splats.encoded import ATTRIBUTES, attributes_problem
from penstock.loaders.splats.model import MAX_SECONDS, MAX_SPLATS
from penstock.loaders.splats.psplat_limits import codebook_bytes, group_bytes, least_file_bytes
from penstock.quant.entropy import FRESH, ChannelCoding
from penstock.quant.lattice import Lattice

MAGIC = b"\x89PSPLAT\n"
VERSION = 1
DYNAMIC, PRIMED, NETS, ALL_DIGITS = 1, 2, 4, 8
MAX_BOOKS = MAX_CHANNELS = 64
MAX_NETS_BYTES = 16 << 20
MAX_VALUES = 1 << 24
NAMES = tuple(ATTRIBUTES)

HEADER = struct.Struct("<8sHHIQIHBBBBBBBB2x6d2dfIQIII8sI")
GROUP = struct.Struct("<2dQIIII")
BOOK = struct.Struct("<BBHIII2d8s")
CHANNEL = struct.Struct("<BBHI8s")
CRC_OFFSET = HEADER.size - 4


@dataclass(frozen=True)
class GroupEntry:
    """A group of splats that is decoded alone; seen from `start` until `end`, seconds."""

    start: float
    end: float
    offset: int
    nbytes: int
    count: int
    crc: int


@dataclass(frozen=True)
class BookEntry:
    """What the head says of a codebook; `coding` None where levels are not stored."""

    map: Map
    columns: int
    size: int
    levels: int
    table: int
    low: float
    step: float
    coding: ChannelCoding | None


@dataclass(frozen=True)
class ChannelEntry:
    """A codebook's columns go to those of the attribute from `first` on."""

    attribute: str
    first: int
    book: int
    coding: ChannelCoding


@dataclass(frozen=True)
class Section:
    """Bytes of the file; nbytes 0: there is none."""

    offset: int = 0
    nbytes: int = 0
    crc: int = 0


@dataclass(frozen=True)
class Head:
    """A checked head.

    Attributes:
        lattice, modelled_digits, slowest: of the positions.
        digits: how the digits kept are coded; None: all are kept.
        primed: groups after the first begin with what that has taught.
        alignment: groups lie at multiples of 2^alignment.
        start, end: seconds; both 0 in a static scene.
    """

    nbytes: int
    count: int
    degree: int
    lattice: Lattice
    modelled_digits: int
    slowest: int
    digits: ChannelCoding | None
    dynamic: bool
    primed: bool
    start: float
    end: float
    fps: float | None
    alignment: int
    books_section: Section
    nets_section: Section
    groups: tuple[GroupEntry, ...] = ()
    books: tuple[BookEntry, ...] = ()
    channels: tuple[ChannelEntry, ...] = ()
    path: Path = field(default=Path("the head"))

    @property
    def head_bytes(self) -> int:
        return head_bytes(len(self.groups), len(self.books), len(self.channels))

    def columns(self) -> dict[str, set[int]]:
        """Columns of each attribute."""
        found: dict[str, set[int]] = {}
        for channel in self.channels:
            end = channel.first + self.books[channel.book].columns
            found.setdefault(channel.attribute, set()).update(range(channel.first, end))
        return found


def head_bytes(groups: int, books: int, channels: int) -> int:
    """Bytes of a head with so many entries."""
    return HEADER.size + groups * GROUP.size + books * BOOK.size + channels * CHANNEL.size


def pack_head(head: Head) -> bytes:
    """The bytes of a head, its checksum included."""
    flags = DYNAMIC * head.dynamic | PRIMED * head.primed | NETS * bool(head.nets_section.nbytes)
    flags |= ALL_DIGITS * (head.digits is None)
    lattice = head.lattice
    data = bytearray(
        HEADER.pack(
            MAGIC, VERSION, flags, head.head_bytes, head.nbytes, head.count, len(head.groups),
            len(head.books), len(head.channels), head.degree, lattice.bits, lattice.symmetric_log,
            head.modelled_digits, head.slowest, head.alignment, *lattice.low, *lattice.step,
            head.start, head.end, head.fps or 0.0, head.books_section.nbytes,
            head.books_section.offset, head.nets_section.nbytes, head.books_section.crc,
            head.nets_section.crc, bytes(8) if head.digits is None else head.digits.pack(), 0,
        )
    )  # fmt: skip
    for g in head.groups:
        data += GROUP.pack(g.start, g.end, g.offset, g.nbytes, g.count, g.crc, 0)
    for b in head.books:
        coding = bytes(8) if b.coding is None else b.coding.pack()
        stored = b.coding is not None
        data += BOOK.pack(
            b.map, stored, b.columns, b.size, b.levels, b.table, b.low, b.step, coding
        )
    for c in head.channels:
        data += CHANNEL.pack(NAMES.index(c.attribute), c.first, c.book, 0, c.coding.pack())
    struct.pack_into("<I", data, CRC_OFFSET, checksum(data))
    return bytes(data)


def checksum(data: bytes | bytearray) -> int:
    """CRC-32C."""
    return _native.crc32c(np.frombuffer(data, np.uint8)) if data else 0


def announced_bytes(path: Path, start: bytes, size: int) -> int:
    """The length of the head, from the file's first bytes, as many as a header has or all.

    Args:
        size: of the file.

    Raises:
        FormatError: not a .psplat file, of another version, or cut short.
    """
    if size == 0:
        raise FormatError(f"{path}: the file is empty; fetch it again")
    if not start.startswith(MAGIC):
        raise FormatError(
            f"{path}: at offset 0: begins with {start[:8]!r}, expected {MAGIC!r}; this is not a "
            ".psplat file"
        )
    if len(start) < HEADER.size:
        raise FormatError(
            f"{path}: has {size} bytes, expected {HEADER.size} or more; it is cut short, fetch it "
            "again"
        )
    fields = HEADER.unpack(start[: HEADER.size])
    version, announced, whole = fields[1], fields[3], fields[4]
    if version != VERSION:
        raise FormatError(
            f"{path}: at offset 8: version is {version}, this Penstock reads {VERSION}; install a "
            "newer one, or export the scene again"
        )
    if whole != size:
        raise FormatError(
            f"{path}: at offset 16: the file should have {whole} bytes and has {size}; it is cut "
            "short or damaged, fetch it again"
        )
    expected = head_bytes(*fields[6:9])
    if announced != expected or announced > size:
        raise FormatError(
            f"{path}: at offset 12: the head has {announced} bytes, expected {expected} of a file "
            f"of {size}; the file is damaged"
        )
    return int(announced)


def parse_head(path: Path, data: bytes, size: int) -> Head:
    """A head, checked against the file's size.

    Args:
        data: the file's first `announced_bytes`.

    Raises:
        FormatError: it names the offset, what was expected and what to do.
    """
    check = _Check(path, size)
    stored = struct.unpack_from("<I", data, CRC_OFFSET)[0]
    zeroed = bytearray(data)
    zeroed[CRC_OFFSET : CRC_OFFSET + 4] = bytes(4)
    found = checksum(zeroed)
    check.that(
        found == stored, CRC_OFFSET, "checksum of the head", f"{found:08x}", f"{stored:08x} stored"
    )
    f = HEADER.unpack(data[: HEADER.size])
    flags, count, groups, books, channels, degree = f[2], f[5], f[6], f[7], f[8], f[9]
    low, step, start, end, fps = f[15:18], f[18:21], f[21], f[22], f[23]
    check.that(flags < 16, 10, "flags", flags, "0 to 15; made by a newer Penstock")
    check.that(data[38:40] == bytes(2), 38, "unused bytes", data[38:40], "zeros")
    check.within(count, 24, "splats", 0, MAX_SPLATS)
    check.that((groups == 0) == (count == 0), 28, "groups", groups, "none without splats only")
    check.within(books, 30, "codebooks", 0, MAX_BOOKS)
    check.within(channels, 31, "channels", 0, MAX_CHANNELS)
    check.within(degree, 32, "SH degree", 0, 3)
    check.within(f[11], 34, "lattice map", 0, 1)
    check.within(f[12], 35, "modelled digits", 0, 21)
    check.within(f[13], 36, "slowest rate", 4, 9)
    check.within(f[14], 37, "alignment", 0, 16)
    lattice = Lattice(f[10], low, step, bool(f[11]))
    check.that(lattice.problem() is None, 33, "lattice", lattice.problem(), "one that is allowed")
    near = abs(start) <= MAX_SECONDS and abs(end) <= MAX_SECONDS  # NaN is not
    check.that(near, 88, "times", (start, end), f"at most {MAX_SECONDS:g} s from 0")
    check.that(start <= end, 96, "end", end, f"at least the start, {start}")
    dynamic = bool(flags & DYNAMIC)
    check.that(dynamic or start == end == 0, 88, "times", (start, end), "zeros in a static scene")
    check.that(math.isfinite(fps) and fps >= 0, 104, "frames a second", fps, "0 or more")
    digits = None
    if not flags & ALL_DIGITS:
        digits = ChannelCoding.unpack(f[29])
        problem = digits.problem(lattice.bits, 0)
        problem = "fresh numbers" if problem is None and digits.mode == FRESH else problem
        check.that(problem is None, 132, "coding of the digits", problem, "one that is allowed")
    else:
        check.that(f[29] == bytes(8), 132, "coding of the digits", f[29], "zeros")
    head = Head(
        nbytes=size, count=count, degree=degree, lattice=lattice, modelled_digits=f[12],
        slowest=f[13], digits=digits, dynamic=dynamic, primed=bool(flags & PRIMED), start=start,
        end=end, fps=fps or None, alignment=f[14], books_section=Section(f[25], f[24], f[27]),
        nets_section=Section(f[25] + f[24] if f[26] else 0, f[26], f[28]), path=path,
    )  # fmt: skip
    at = HEADER.size
    group_entries, at = _groups(check, data, at, groups, channels, dynamic)
    book_entries, at = _books(check, data, at, books)
    head = replace(head, groups=group_entries, books=book_entries)
    head = replace(head, channels=_channels(check, head, data, at, channels))
    _check_sections(check, head, bool(flags & NETS))
    if count:
        problem = attributes_problem(
            head.columns(), degree=degree, dynamic=dynamic, nets=bool(flags & NETS)
        )
        check.that(problem is None, at, "channels", problem, "all that a scene needs")
    return head


class _Check:
    """Errors of a head: file, offset, field, what was found and expected."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size

    def that(self, holds: bool, offset: int, name: str, found: object, expected: str) -> None:
        if not holds:
            raise FormatError(
                f"{self.path}: at offset {offset}: {name}: found {found}, expected {expected}; the "
                "file is damaged, fetch it or export it again"
            )

    def within(self, value: int, offset: int, name: str, least: int, most: int) -> None:
        self.that(least <= value <= most, offset, name, value, f"{least} to {most}")


def _groups(
    check: _Check, data: bytes, at: int, count: int, channels: int, dynamic: bool
) -> tuple[tuple[GroupEntry, ...], int]:
    entries = []
    for number in range(count):
        start, end, offset, nbytes, splats, crc, unused = GROUP.unpack_from(data, at)
        name = f"group {number}"
        check.that(unused == 0, at + 36, f"unused bytes of {name}", unused, "zeros")
        finite = math.isfinite(start) and math.isfinite(end) and start <= end
        check.that(finite, at, f"times of {name}", (start, end), "finite ones that ascend")
        check.that(dynamic or start == end == 0, at, f"times of {name}", (start, end), "zeros")
        check.within(splats, at + 28, f"splats of {name}", 1, MAX_SPLATS)
        least, most = group_bytes(splats, channels)
        fits = least <= nbytes <= most and nbytes % 2 == 0
        check.that(fits, at + 24, f"bytes of {name}", nbytes, f"{least} to {most}, even")
        entries.append(GroupEntry(start, end, offset, nbytes, splats, crc))
        at += GROUP.size
    return tuple(entries), at


def _books(check: _Check, data: bytes, at: int, count: int) -> tuple[tuple[BookEntry, ...], int]:
    entries = []
    for number in range(count):
        kind, stored, columns, size, levels, table, low, step, raw = BOOK.unpack_from(data, at)
        name = f"codebook {number}"
        check.within(kind, at, f"map of {name}", 0, 2)
        check.within(stored, at + 1, f"'stored' of {name}", 0, 1)
        check.within(columns, at + 2, f"columns of {name}", 1, MAX_COLUMNS if stored else 1)
        check.within(size, at + 4, f"entries of {name}", 1, MAX_ENTRIES)
        least, most = (MAX_ENTRIES, MAX_ENTRIES) if kind == Map.HALF else (1, MAX_ENTRIES)
        check.within(levels, at + 8, f"levels of {name}", least, most)
        check.that(bool(stored) or levels == size, at + 8, f"levels of {name}", levels, f"{size}")
        table_size = levels if kind == Map.TABLE else 0
        check.that(table == table_size, at + 12, f"table of {name}", table, f"{table_size}")
        last = low + step * (levels - 1)
        uniform = kind == Map.UNIFORM
        fits = step >= 0 and max(abs(low), abs(last)) <= MAX_MAGNITUDE  # NaN does not
        fits = fits if uniform else low == step == 0
        expected = "numbers of at most 1e9" if uniform else "zeros"
        check.that(fits, at + 16, f"low and step of {name}", (low, step), expected)
        coding = None
        if stored:
            coding = ChannelCoding.unpack(raw)
            problem = coding.problem(levels, 1)
            problem = "fresh numbers" if problem is None and coding.mode == FRESH else problem
            check.that(problem is None, at + 32, f"coding of {name}", problem, "an allowed one")
        else:
            check.that(raw == bytes(8), at + 32, f"coding of {name}", raw, "zeros")
        entries.append(BookEntry(Map(kind), columns, size, levels, table, low, step, coding))
        at += BOOK.size
    return tuple(entries), at


def _channels(
    check: _Check, head: Head, data: bytes, at: int, count: int
) -> tuple[ChannelEntry, ...]:
    entries: list[ChannelEntry] = []
    for number in range(count):
        attribute, first, book, unused, raw = CHANNEL.unpack_from(data, at)
        name = f"channel {number}"
        check.within(attribute, at, f"attribute of {name}", 0, len(NAMES) - 1)
        check.within(book, at + 2, f"codebook of {name}", 0, len(head.books) - 1)
        check.that(unused == 0, at + 4, f"unused bytes of {name}", unused, "zeros")
        end, most = first + head.books[book].columns, max(ATTRIBUTES[NAMES[attribute]])
        check.that(end <= most, at + 1, f"columns of {name}", end, f"{most} or less")
        coding = ChannelCoding.unpack(raw)
        problem = coding.problem(head.books[book].size, number, head.digits is not None)
        if problem is None and coding.mode == FRESH and len(head.groups) > 1:
            problem = "fresh numbers in several groups"
        check.that(problem is None, at + 8, f"coding of {name}", problem, "one that is allowed")
        entries.append(ChannelEntry(NAMES[attribute], first, book, coding))
        at += CHANNEL.size
    return tuple(entries)


def _check_sections(check: _Check, head: Head, nets: bool) -> None:
    """Everything lies in the file, in order, without overlapping."""
    books, at = head.books_section, head.head_bytes
    check.that(books.offset == at, 112, "offset of the codebook section", books.offset, f"{at}")
    values = sum(b.table * 2 + (b.size * b.columns if b.coding else 0) for b in head.books)
    check.within(values, HEADER.size, "numbers of the codebooks", 0, MAX_VALUES)
    least, most = codebook_bytes(values)
    fits = least <= books.nbytes <= most and books.nbytes % 2 == 0
    check.that(fits, 108, "bytes of the codebook section", books.nbytes, f"{least} to {most}, even")
    check.that(nets == (head.nets_section.nbytes > 0), 120, "bytes of the nets", nets, "as flagged")
    check.within(head.nets_section.nbytes, 120, "bytes of the nets", 0, MAX_NETS_BYTES)
    crc = head.nets_section.crc
    check.that(nets or crc == 0, 128, "checksum of no nets", f"{crc:08x}", "zeros")
    at += books.nbytes + head.nets_section.nbytes
    check.that(at <= check.size, 108, "end of the codebooks and nets", at, f"{check.size} or less")
    entry, total = HEADER.size, 0
    for number, group in enumerate(head.groups):
        aligned = -(-at >> head.alignment) << head.alignment
        check.that(
            group.offset == aligned, entry + 16, f"offset of group {number}", group.offset,
            f"{aligned}",
        )  # fmt: skip
        at = group.offset + group.nbytes
        check.that(at <= check.size, entry + 24, f"end of group {number}", at, f"{check.size}")
        total += group.count
        entry += GROUP.size
    check.that(at == check.size, 16, "end of the last section", at, f"{check.size}")
    check.that(total == head.count, 24, "splats of all groups", total, f"{head.count}")
    least = least_file_bytes(head.count, head.degree, head.dynamic)
    check.that(check.size >= least, 16, "bytes of the file", check.size, f"{least} or more")
