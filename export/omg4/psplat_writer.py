"""Writes .psplat files: docs/psplat-format.md. What is written how is decided in `psplat_plan`.

The file is opened by the reader before it gets its name; on any error nothing is left behind.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import UsageError
from penstock.export.omg4.psplat_plan import Plan, PlannedBook, plan_psplat
from penstock.export.omg4.sparse_learning import (
    coder_of,
    numbers_of,
    plan_bits,
    with_sparse_learning,
)
from penstock.export.report import Progress, ProgressCallback
from penstock.loaders.partial_file import partial_file
from penstock.loaders.splats.encoded import EncodedSplats, Net
from penstock.loaders.splats.psplat_file import PsplatFile
from penstock.loaders.splats.psplat_layout import (
    MAX_BOOKS,
    MAX_CHANNELS,
    MAX_NETS_BYTES,
    BookEntry,
    ChannelEntry,
    GroupEntry,
    Head,
    Section,
    checksum,
    head_bytes,
    pack_head,
)
from penstock.loaders.splats.psplat_limits import least_file_bytes
from penstock.loaders.splats.psplat_sections import TABLE_HIGH, TABLE_LOW, split_floats
from penstock.quant.entropy import ChannelCoding, coding_rows

LEAST_GROUP = 4096
PAGE = 12  # bits of 4096, which direct reads are aligned to
MOST_PADDING = 0.005  # of a file, for that


@dataclass(frozen=True)
class PsplatSizes:
    """Where the bytes of a file are.

    Attributes:
        total: of the file. count: its splats.
        head: header and tables. codebooks, nets: their sections.
        positions: of the payloads; parts: of each sub-vector, by name. The payloads' bits are
            told apart by what the models say of them, so they are fractions of bytes.
        padding: zeros, and what the payloads have over their bits.
        fixed_bits: bits a splat that the same numbers would take at fixed width.
    """

    total: int
    count: int
    groups: int
    head: int
    codebooks: int
    nets: int
    positions: float
    parts: dict[str, float]
    padding: float
    fixed_bits: float

    @property
    def bytes_a_splat(self) -> float:
        """Of the whole file; 0 without splats."""
        return self.total / self.count if self.count else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "parts": dict(self.parts), "bytes_a_splat": self.bytes_a_splat}


@dataclass(frozen=True)
class PsplatContent:
    """A file's head, its other sections with their offsets, and what is where."""

    head: Head
    sections: tuple[tuple[int, bytes], ...]
    sizes: PsplatSizes


def write_psplat(
    path: str | Path,
    encoded: EncodedSplats,
    least_group: int = LEAST_GROUP,
    alignment: int | None = None,
    progress: ProgressCallback | None = None,
    *,
    entropy: bool = True,
) -> PsplatSizes:
    """Write a file. The order of the splats is not kept.

    Args:
        least_group: splats of a group that is decoded alone, where there are enough.
        alignment: groups begin at multiples of 2^alignment; None: of 4096, where that costs less
            than 0.5 % of the file, else of 1.
        progress: called after each group.
        entropy: False: numbers of fixed width, but for the positions' Morton codes.

    Raises:
        UsageError: the splats are not such as a file could hold, or an argument is out of range.
        StorageError: the file cannot be written.
    """
    made = psplat_content(encoded, least_group, alignment, progress, entropy=entropy)
    return write_content(path, made)


def write_content(path: str | Path, made: PsplatContent) -> PsplatSizes:
    """Write what `psplat_content` made.

    Raises:
        StorageError: the file cannot be written.
    """
    with partial_file(Path(path)) as (handle, temporary):
        handle.write(pack_head(made.head))
        for offset, data in made.sections:
            handle.write(bytes(offset - handle.tell()))
            handle.write(data)
        handle.flush()
        with PsplatFile.open(temporary) as file:
            file.read_codebooks()  # the reader takes it
    return made.sizes


def psplat_size(
    encoded: EncodedSplats, least_group: int = LEAST_GROUP, *, entropy: bool = True
) -> PsplatSizes:
    """What a file would be, without writing it. Raises as `write_psplat`."""
    return psplat_content(encoded, least_group, entropy=entropy).sizes


def psplat_content(
    encoded: EncodedSplats,
    least_group: int = LEAST_GROUP,
    alignment: int | None = None,
    progress: ProgressCallback | None = None,
    *,
    entropy: bool = True,
) -> PsplatContent:
    """Plan and code a file. The arguments are those of `write_psplat`, which raises the same."""
    if alignment is not None and not 0 <= alignment <= 16:
        raise UsageError(f"alignment {alignment}; expected 0 to 16, of 2^alignment bytes")
    plan = plan_psplat(encoded, least_group, entropy=entropy)
    if len(plan.books) > MAX_BOOKS or len(plan.channels) > MAX_CHANNELS:
        raise UsageError(
            f"{len(plan.channels)} sub-vectors with {len(plan.books)} codebooks; a file has at "
            f"most {MAX_CHANNELS} with {MAX_BOOKS}"
        )
    plan, bits = with_sparse_learning(plan) if entropy else (plan, plan_bits(plan))
    books = _book_section(plan.books)
    nets = _net_section(encoded.nets)
    if len(nets) > MAX_NETS_BYTES:
        raise UsageError(f"nets of {len(nets)} bytes; a file has at most {MAX_NETS_BYTES}")
    payloads = _filled_up(plan, _payloads(plan, progress))
    own = head_bytes(len(plan.groups), len(plan.books), len(plan.channels))
    start = own + len(books) + len(nets)
    if alignment is None:
        whole = start + sum(map(len, payloads))
        padding = (len(payloads) << PAGE) / 2
        alignment = PAGE if len(payloads) > 1 and padding <= MOST_PADDING * whole else 0
    sections, at = [(own, books), (own + len(books), nets)], start
    groups = []
    for group, payload in zip(plan.groups, payloads, strict=True):
        at = -(-at >> alignment) << alignment
        entry = GroupEntry(
            group.start, group.end, at, len(payload), group.part.stop - group.part.start,
            checksum(payload),
        )  # fmt: skip
        groups.append(entry)
        sections.append((at, payload))
        at += len(payload)
    head = replace(
        _head(plan),
        nbytes=at,
        alignment=alignment,
        books_section=Section(own, len(books), checksum(books)),
        nets_section=Section(own + len(books), len(nets), checksum(nets)),
        groups=tuple(groups),
    )
    parts = dict(zip((c.name for c in plan.channels), (b / 8 for b in bits[1:]), strict=True))
    told = own + len(books) + len(nets) + sum(bits) / 8
    sizes = PsplatSizes(
        at, plan.splats.count, len(groups), own, len(books), len(nets), bits[0] / 8, parts,
        at - told, plan.splats.fixed_bits,
    )  # fmt: skip
    return PsplatContent(head, tuple(section for section in sections if section[1]), sizes)


def _head(plan: Plan) -> Head:
    """All but sections and groups."""
    splats = plan.splats
    return Head(
        nbytes=0, count=splats.count, degree=splats.degree, lattice=splats.lattice,
        modelled_digits=plan.modelled_digits, slowest=plan.slowest, digits=plan.digits,
        dynamic=splats.dynamic, primed=plan.primed, start=splats.start or 0.0,
        end=splats.end or 0.0, fps=splats.fps, alignment=0, books_section=Section(),
        nets_section=Section(), books=tuple(_book_entry(book) for book in plan.books),
        channels=tuple(
            ChannelEntry(c.attribute, c.first, c.book, c.coding) for c in plan.channels
        ),
    )  # fmt: skip


def _book_entry(planned: PlannedBook) -> BookEntry:
    book = planned.book
    table = 0 if book.numbers is None else len(book.numbers)
    return BookEntry(
        book.map, book.columns, book.size, book.level_count, table, book.low, book.step,
        planned.coding,
    )  # fmt: skip


def _payloads(plan: Plan, progress: ProgressCallback | None) -> list[bytes]:
    """Of each group."""
    coder = coder_of(plan)
    payloads: list[bytes] = []
    for number, group in enumerate(plan.groups):
        numbers = numbers_of(plan, group)
        goes_on, teaches = plan.primed and number > 0, plan.primed and number == 0
        payloads.append(coder.encode(*numbers, goes_on, teaches))
        if progress is not None:
            progress(Progress("writing", number + 1, len(plan.groups), "groups"))
    return payloads


def _filled_up(plan: Plan, payloads: list[bytes]) -> list[bytes]:
    """With zeros, where a reader would take so few bytes for an attack."""
    splats = plan.splats
    least = least_file_bytes(splats.count, splats.degree, splats.dynamic)
    counts = [group.part.stop - group.part.start for group in plan.groups]
    return [
        payload.ljust(2 * math.ceil(least * count / splats.count / 2), b"\0")
        for count, payload in zip(counts, payloads, strict=True)
    ]


def _book_section(books: Sequence[PlannedBook]) -> bytes:
    sheets: list[NDArray[np.uint16]] = []
    columns: list[int] = []
    codings: list[tuple[ChannelCoding, int]] = []
    for planned in books:
        book = planned.book
        if book.numbers is not None:
            sheets += split_floats(book.numbers)
            columns += [1, 1]
            codings += [(TABLE_HIGH, 1 << 16), (TABLE_LOW, 1 << 16)]
        if planned.coding is not None:
            assert book.levels is not None
            sheets.append(np.ascontiguousarray(book.levels).reshape(-1))
            columns.append(book.columns)
            codings.append((planned.coding, book.level_count))
    return _native.encode_sheets(sheets, columns, coding_rows(codings)) if sheets else b""


def _net_section(nets: Sequence[Net]) -> bytes:
    if not nets:
        return b""
    data = struct.pack("<I", len(nets))
    for net in nets:
        name = net.name.encode("ascii")
        data += struct.pack("<B", len(name)) + name + struct.pack("<I", net.values.size)
        data += np.ascontiguousarray(net.values, "<f2").tobytes()
    return data
