"""Reads .psplat files: the head and the codebooks once, groups of splats when they are wanted.

    with PsplatFile.open("flame.psplat") as file:
        now = [file.segment(i) for i in file.active(1.5)]

Reads pass the page cache by, where the file system lets them, so that a scene is played in as much
memory as its caller holds. The format: docs/psplat-format.md.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import FormatError
from penstock.loaders.closing import Closing
from penstock.loaders.cores import compute_threads
from penstock.loaders.splats.codebook import Codebook, Map
from penstock.loaders.splats.encoded import (
    EncodedSplats,
    Net,
    SubVector,
    decode_into,
    decode_splats,
)
from penstock.loaders.splats.model import SplatModel, unfilled_model
from penstock.loaders.splats.psplat_layout import (
    HEADER,
    BookEntry,
    Head,
    Section,
    announced_bytes,
    parse_head,
)
from penstock.quant.entropy import RESIDUAL, ChannelCoding, coding_rows

Bytes = NDArray[np.uint8]
Box = tuple[tuple[float, float, float], tuple[float, float, float]]

MODEL_NBYTES = 32 << 10
"""Of what a channel's coding learns, at most: 529 models of 48 bytes."""
MAX_NETS = 64
TABLE_HIGH = ChannelCoding(mode=RESIDUAL, predictor=1, slowest=5)
TABLE_LOW = ChannelCoding(raw=16)
"""Of a table's numbers, cut into their upper and lower 16 bits."""


@dataclass(frozen=True)
class SegmentInfo:
    """A group of splats that is read and decoded alone.

    Attributes:
        start, end: seconds; none of its splats is seen before or from the end on. Both 0 in a
            static scene. Segments overlap.
        count: splats.
        offset, nbytes: in the file.
        decoded_nbytes: of the model that `PsplatFile.segment` gives.
        work_nbytes: taken for a while beside that, about.
    """

    index: int
    start: float
    end: float
    count: int
    offset: int
    nbytes: int
    decoded_nbytes: int
    work_nbytes: int


@dataclass(frozen=True)
class PsplatInfo:
    """What a file's head says.

    Attributes:
        degree: of the spherical harmonics.
        start, end: seconds, 0 where static. fps: frames a second, where known.
        box: lowest and highest corner of the lattice that positions are of, which all means lie
            in; None where it is logarithmic or there are no splats.
    """

    path: Path
    nbytes: int
    count: int
    degree: int
    dynamic: bool
    start: float
    end: float
    fps: float | None
    box: Box | None
    segments: tuple[SegmentInfo, ...]


class PsplatFile(Closing):
    """An open file. Its methods may be called from several threads."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """As `open`."""
        self.path = Path(path)
        file = _native.DirectFile(str(self.path))
        self._file: _native.DirectFile | None = file
        self._head = head = _read_head(self.path, file)
        self._books = _read_books(head, self._section(head.books_section, "the codebook section"))
        self._nets = _read_nets(self.path, self._section(head.nets_section, "the nets section"))
        sizes = [(channel.coding, head.books[channel.book].size) for channel in head.channels]
        self._coder = _native.SplatCoder(
            head.lattice.bits,
            head.modelled_digits,
            head.slowest,
            None if head.digits is None else head.digits.row(head.lattice.bits),
            coding_rows(sizes),
        )
        self._lock = threading.Lock()
        self._learned = False
        self.info = _info(self.path, head)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PsplatFile:
        """Read and check the head and the codebooks.

        Raises:
            FormatError: not such a file, damaged, cut short, or of another version.
            StorageError: it cannot be read.
        """
        return cls(path)

    @property
    def codebook_nbytes(self) -> int:
        """Memory that the open file holds between calls: codebooks, nets, what coding has learned,
        at most."""
        books = sum(
            array.nbytes
            for book in self._books
            for array in (book.entries, book.levels, book.numbers)
            if array is not None
        )
        nets = sum(net.values.nbytes for net in self._nets)
        return books + nets + MODEL_NBYTES * (2 + len(self._head.channels))

    def active(self, time: float) -> tuple[int, ...]:
        """Segments whose splats may be seen at a time (seconds); all of a static scene."""
        return tuple(
            segment.index
            for segment in self.info.segments
            if not self.info.dynamic or segment.start <= time < segment.end
        )

    def segment(self, index: int) -> SplatModel:
        """The splats of one segment.

        Raises:
            IndexError: there is no such segment.
            FormatError: it is damaged.
            StorageError: it cannot be read.
        """
        return decode_splats(self.encoded_segment(index), self._source(index))

    def _source(self, index: int) -> str:
        return f"{self.path}: segment {index}"

    def encoded_segment(self, index: int) -> EncodedSplats:
        """The splats of one segment as the file has them. Raises as `segment`."""
        if not 0 <= index < len(self._head.groups):
            raise IndexError(f"segment {index} of {len(self._head.groups)}")
        if index and self._head.primed:
            with self._lock:
                if not self._learned:  # from the first group, which all others go on from
                    self._numbers(0)
        head = self._head
        cells, digits, channels = self._numbers(index)
        parts = tuple(
            SubVector(f"{entry.attribute}.{k}", self._books[entry.book], values, entry.first)
            for k, (entry, values) in enumerate(zip(head.channels, channels, strict=True))
        )
        return EncodedSplats(
            lattice=head.lattice,
            cells=cells,
            parts=parts,
            degree=head.degree,
            digits=None if head.digits is None else digits,
            start=head.start if head.dynamic else None,
            end=head.end if head.dynamic else None,
            fps=head.fps,
            nets=self._nets,
        )

    def read_all(self, *, threads: int | None = None) -> SplatModel:
        """All splats, segment after segment. Raises as `segment`.

        Args:
            threads: that decode; None: one for each core.
        """
        threads, head, groups = compute_threads(threads), self._head, self._head.groups
        times = (head.start, head.end, head.fps) if head.dynamic else (None, None, None)
        model = unfilled_model(head.count, head.degree, *times)
        begins = [0, *accumulate(group.count for group in groups)]

        def decode(index: int, on: int = 1) -> None:
            encoded = self.encoded_segment(index)
            decode_into(model, begins[index], encoded, self._source(index), threads=on)

        if groups:
            decode(0, threads)  # the others' coding goes on from it
        with ThreadPoolExecutor(threads) as pool:
            list((pool.map if threads > 1 else map)(decode, range(1, len(groups))))
        return model

    def close(self) -> None:
        """Close the file; twice is no error."""
        self._file = None

    def _numbers(
        self, index: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint8], list[NDArray[np.uint16]]]:
        group = self._head.groups[index]
        name = f"segment {index}"
        payload = self._section(Section(group.offset, group.nbytes, group.crc), name)
        primed = index > 0 and self._head.primed
        learns = index == 0 and self._head.primed
        with _named(self.path, name, group.offset):
            decoded = self._coder.decode(payload, group.count, primed, learns)
        self._learned = self._learned or learns
        return decoded

    def _section(self, section: Section, name: str) -> Bytes:
        """Its bytes, whose checksum is right."""
        if self._file is None:
            raise ValueError(f"{self.path}: the file is closed")
        data: Bytes = self._file.read(section.offset, section.nbytes)
        found = _native.crc32c(data)
        if section.nbytes and found != section.crc:
            raise FormatError(
                f"{self.path}: at offset {section.offset}: {name}: its {section.nbytes} bytes have "
                f"checksum {found:08x}, expected {section.crc:08x}; the file is damaged, fetch it "
                "again"
            )
        return data


@contextmanager
def _named(path: Path, name: str, offset: int) -> Iterator[None]:
    """Errors of the decoder, which knows no files, become those of one."""
    try:
        yield
    except FormatError as error:
        raise FormatError(
            f"{path}: at offset {offset}: {name}: {error}; the file is damaged, export it again"
        ) from None


def _read_head(path: Path, file: _native.DirectFile) -> Head:
    size = file.size
    start = file.read(0, min(size, HEADER.size)).tobytes()
    return parse_head(path, file.read(0, announced_bytes(path, start, size)).tobytes(), size)


def _read_books(head: Head, payload: Bytes) -> list[Codebook]:
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
        with _named(head.path, "the codebook section", head.books_section.offset):
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
        books.append(book)
    return books


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


def _read_nets(path: Path, data: Bytes) -> tuple[Net, ...]:
    """`u32` count; of each `u8` and name, `u32` and float16 numbers."""
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


def _info(path: Path, head: Head) -> PsplatInfo:
    coefficients = (head.degree + 1) ** 2
    floats = 3 + 3 + 4 + 1 + 3 * coefficients + (5 if head.dynamic else 0)
    numbers = 12 + 2 * len(head.channels)  # cells and indices, as they come from the decoder
    segments = tuple(
        SegmentInfo(
            k, g.start, g.end, g.count, g.offset, g.nbytes,
            decoded_nbytes=4 * floats * g.count,
            work_nbytes=g.nbytes + (2 * numbers + 80) * g.count,
        )
        for k, g in enumerate(head.groups)
    )  # fmt: skip
    box = None
    if head.count and not head.lattice.symmetric_log:
        low, step, edge = head.lattice.low, head.lattice.step, 1 << head.lattice.bits
        high = (low[0] + step[0] * edge, low[1] + step[1] * edge, low[2] + step[2] * edge)
        box = (low, high)
    return PsplatInfo(
        path, head.nbytes, head.count, head.degree, head.dynamic, head.start, head.end, head.fps,
        box, segments,
    )  # fmt: skip
