"""Reads .psplat files: the head at once, codebooks with the first splats, groups when wanted.

    with PsplatFile.open("flame.psplat") as file:
        now = [file.segment(i) for i in file.active(1.5)]

Reads pass the page cache by, where the file system lets them, so that a scene is played in as much
memory as its caller holds. The format: docs/psplat-format.md.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import FormatError
from penstock.loaders.closing import Closing
from penstock.loaders.cores import compute_threads
from penstock.loaders.splats.codebook import Codebook
from penstock.loaders.splats.decoding import decode_into, decode_splats
from penstock.loaders.splats.encoded import EncodedSplats, Net, SubVector
from penstock.loaders.splats.model import SplatModel, unfilled_model
from penstock.loaders.splats.psplat_layout import (
    HEADER,
    Head,
    Section,
    announced_bytes,
    parse_head,
)
from penstock.loaders.splats.psplat_limits import splat_nbytes
from penstock.loaders.splats.psplat_sections import (
    Bytes,
    book_nbytes,
    named,
    read_books,
    read_nets,
    reading_nbytes,
)
from penstock.quant.appearance_nets import BLOCK_BYTES
from penstock.quant.entropy import coding_rows

Box = tuple[tuple[float, float, float], tuple[float, float, float]]

MODEL_NBYTES = 32 << 10
"""Of what a channel's coding learns, at most: 529 models of 48 bytes."""


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
        self._shared: tuple[list[Codebook], tuple[Net, ...]] | None = None
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
        """Read and check the head.

        Raises:
            FormatError: not such a file, damaged, cut short, or of another version.
            StorageError: it cannot be read.
        """
        return cls(path)

    @property
    def codebook_nbytes(self) -> int:
        """Memory that the open file holds between calls: codebooks, nets, what coding has learned,
        at most. The head says it: nothing is read for it."""
        head = self._head
        books = sum(map(book_nbytes, head.books))
        return books + head.nets_section.nbytes + MODEL_NBYTES * (2 + len(head.channels))

    @property
    def reading_nbytes(self) -> int:
        """Memory that `read_codebooks` takes for a while beside `codebook_nbytes`, at most."""
        return reading_nbytes(self._head)

    def read_codebooks(self) -> None:
        """Read and check the codebooks and nets, which otherwise the first splats bring with them.
        Raises as `segment`."""
        self._codebooks()

    def _codebooks(self) -> tuple[list[Codebook], tuple[Net, ...]]:
        with self._lock:
            if self._shared is None:
                head = self._head
                payload = self._section(head.books_section, "the codebook section")
                books = read_books(head, payload)
                del payload
                nets = self._section(head.nets_section, "the nets section")
                self._shared = books, read_nets(self.path, nets)
            return self._shared

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
        books, nets = self._codebooks()
        if index and self._head.primed:
            with self._lock:
                if not self._learned:  # from the first group, which all others go on from
                    self._numbers(0)
        head = self._head
        cells, digits, channels = self._numbers(index)
        parts = tuple(
            SubVector(f"{entry.attribute}.{k}", books[entry.book], values, entry.first)
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
            nets=nets,
        )

    def read_all(self, *, threads: int | None = None) -> SplatModel:
        """All splats, segment after segment. Raises as `segment`.

        Args:
            threads: that decode; None: one for each core.
        """
        threads, head, groups = compute_threads(threads), self._head, self._head.groups
        self._codebooks()  # also where there are no groups
        times = (head.start, head.end, head.fps) if head.dynamic else (None, None, None)
        model = unfilled_model(head.count, head.degree, *times)
        begins = [0, *accumulate(group.count for group in groups)]

        def decode(index: int, on: int = 1) -> None:
            encoded = self.encoded_segment(index)
            decode_into(model, begins[index], encoded, self._source(index), threads=on)

        if groups:
            decode(0, threads)  # the others' coding goes on from it
        # One more than decode: it waits for the storage meanwhile.
        with ThreadPoolExecutor(threads + 1) as pool:
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
        with named(self.path, name, group.offset):
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


def _read_head(path: Path, file: _native.DirectFile) -> Head:
    size = file.size
    start = file.read(0, min(size, HEADER.size)).tobytes()
    return parse_head(path, file.read(0, announced_bytes(path, start, size)).tobytes(), size)


def _info(path: Path, head: Head) -> PsplatInfo:
    each = splat_nbytes(head.degree, head.dynamic)
    numbers = 12 + 2 * len(head.channels)  # cells and indices, as they come from the decoder
    nets = BLOCK_BYTES if head.nets_section.nbytes else 0  # their arrays in the blocks they decode
    segments = tuple(
        SegmentInfo(
            k, g.start, g.end, g.count, g.offset, g.nbytes,
            decoded_nbytes=each * g.count,
            work_nbytes=g.nbytes + (2 * numbers + 80) * g.count + nets,
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
