"""Decides how splats are written: their groups and order, their codebooks' order, their codings.

Splats go by time into groups and within those by Morton code, so that neighbours in the file are
neighbours in space and tell each other what they are like.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.export.omg4.book_order import ArrangedBook, arrange, level_coding
from penstock.export.omg4.time_groups import time_groups, visible_spans
from penstock.loaders.splats.codebook import Codebook
from penstock.loaders.splats.decoding import time_columns
from penstock.loaders.splats.encoded import (
    ATTRIBUTES,
    EncodedSplats,
    SubVector,
    check_encoded,
    first_columns,
)
from penstock.quant.entropy import (
    DIGITS,
    FRESH,
    ChannelCoding,
    Neighbours,
    Reference,
    choose_coding,
    coding_rows,
    previous,
    uncoded,
)
from penstock.quant.morton import morton_codes

PLACES = (0, 1, 2, 3, 4, 6)  # numbers of modelled digits that are tried
POSITION_SAMPLE = 40_000
REFERENCES = 4  # earlier channels that one may refer to, at most
MOST_PIECES = 1 << 14  # of a file, whose head counts them in 16 bits
MOST, FIRST = 8, 2  # times the least splats of a group: of a pair of pieces, and of the first piece


@dataclass(frozen=True)
class PlannedGroup:
    """Splats `part` of the planned order, seen from `start` until `end` (seconds)."""

    part: slice
    start: float
    end: float


@dataclass(frozen=True)
class PlannedChannel:
    """Attributes: see `psplat_layout.ChannelEntry`; values [n] are in the planned order."""

    name: str
    attribute: str
    first: int
    book: int
    values: NDArray[np.uint16]
    coding: ChannelCoding


@dataclass(frozen=True)
class PlannedBook:
    """A codebook and how its levels are coded; None where none are stored."""

    book: Codebook
    coding: ChannelCoding | None


@dataclass(frozen=True)
class Plan:
    """Everything but the bytes.

    Attributes:
        splats: in the order in which they are written.
        modelled_digits, slowest: of the positions.
        digits: the coding of the digits kept; None: all are.
        primed: groups go on from what the first has taught.
    """

    splats: EncodedSplats
    groups: tuple[PlannedGroup, ...]
    books: tuple[PlannedBook, ...]
    channels: tuple[PlannedChannel, ...]
    modelled_digits: int
    slowest: int
    digits: ChannelCoding | None
    primed: bool


def plan_psplat(encoded: EncodedSplats, least_group: int, *, entropy: bool = True) -> Plan:
    """How the splats are best written.

    Args:
        least_group: splats of a group, where there are enough.
        entropy: False: all but the positions at fixed width, with no model.

    Raises:
        UsageError: the splats are not such as a file could hold.
    """
    check_encoded(encoded)
    if encoded.count == 0:
        return Plan(encoded, (), (), (), 0, 7, None, False)
    splats, groups = _in_order(_with_useful_digits(encoded), least_group)
    neighbours = _neighbours(splats, groups)
    parts = sorted(
        zip(splats.parts, first_columns(splats.parts), strict=True),
        key=lambda found: list(ATTRIBUTES).index(found[0].attribute),
    )
    books, numbers, arranged = _books([part for part, _ in parts], neighbours, len(groups) == 1)
    if not any(book.fresh for book in books):
        groups = _in_pieces(groups, least_group)
    channels: list[PlannedChannel] = []
    for (part, first), number, values in zip(parts, numbers, arranged, strict=True):
        book = books[number]
        coding = ChannelCoding(mode=FRESH)
        if not entropy:
            coding = uncoded(book.book.size)
        elif not book.fresh:
            references = _references(channels, books, part.attribute, splats)
            coding = choose_coding(values, book.book.size, neighbours, references)
        channels.append(PlannedChannel(part.name, part.attribute, first, number, values, coding))
    digits = None
    if splats.digits is not None:
        kept = (splats.digits - 1).astype(np.uint16)
        size = splats.lattice.bits
        digits = choose_coding(kept, size, previous(splats.count)) if entropy else uncoded(size)
    modelled, slowest = _position_coding(splats, groups, digits)
    planned = tuple(_planned_book(book.book, entropy) for book in books)
    primed = len(groups) > 1
    return Plan(splats, groups, planned, tuple(channels), modelled, slowest, digits, primed)


def _planned_book(book: Codebook, entropy: bool) -> PlannedBook:
    if book.levels is None:
        return PlannedBook(book, None)
    return PlannedBook(book, level_coding(book) if entropy else uncoded(book.level_count))


def _with_useful_digits(encoded: EncodedSplats) -> EncodedSplats:
    """Without digits where all are kept: that is said once."""
    digits = encoded.digits
    if digits is not None and (digits == encoded.lattice.bits).all():
        return replace(encoded, digits=None)
    if digits is None:
        return encoded
    dropped = (encoded.lattice.bits - digits.astype(np.uint32))[:, None]
    return replace(encoded, cells=encoded.cells >> dropped << dropped)


def _in_order(
    encoded: EncodedSplats, least_group: int
) -> tuple[EncodedSplats, tuple[PlannedGroup, ...]]:
    codes = morton_codes(encoded.cells)
    if not encoded.dynamic:
        order = np.argsort(codes, kind="stable")
        return encoded.select(order), (PlannedGroup(slice(0, encoded.count), 0.0, 0.0),)
    assert encoded.start is not None and encoded.end is not None
    begins, ends = visible_spans(*time_columns(encoded))
    members = time_groups(begins, ends, encoded.start, encoded.end, least_group)
    groups, orders, at = [], [], 0
    for indices in members:
        orders.append(indices[np.argsort(codes[indices], kind="stable")])
        part = slice(at, at + len(indices))
        begin, end = float(begins[indices].min()), float(ends[indices].max())
        groups.append(PlannedGroup(part, begin, end))
        at = part.stop
    return encoded.select(np.concatenate(orders)), tuple(groups)


def _in_pieces(groups: Sequence[PlannedGroup], least: int) -> tuple[PlannedGroup, ...]:
    """Large groups cut, so that a reader's threads share them.

    Of the first group a small piece comes first: no other is decoded before what that teaches. The
    others are even in number.
    """
    most = max(group.part.stop for group in groups) if groups else 0
    least = max(least, 1, -(-most // MOST_PIECES))
    found: list[PlannedGroup] = []
    for group in groups:
        begin, end = group.part.start, group.part.stop
        if not found and end - begin > 2 * FIRST * least:
            found.append(replace(group, part=slice(begin, begin + FIRST * least)))
            begin += FIRST * least
        pieces = 2 * -(-(end - begin) // (MOST * least)) if end - begin > MOST * least // 2 else 1
        edges = [begin + (end - begin) * k // pieces for k in range(pieces + 1)]
        found += [replace(group, part=slice(*pair)) for pair in itertools.pairwise(edges)]
    return tuple(found)


def _neighbours(splats: EncodedSplats, groups: Sequence[PlannedGroup]) -> Neighbours:
    """Of all splats, as each group has them, counted from the first splat of all."""
    found = []
    for group in groups:
        digits = np.zeros(0, np.uint8) if splats.digits is None else splats.digits[group.part]
        own = _native.splat_neighbours(splats.cells[group.part], digits, splats.lattice.bits)
        found.append(np.where(own < 0, -1, own + group.part.start).astype(np.int32))
    return np.concatenate(found)


def _books(
    parts: Sequence[SubVector], neighbours: Neighbours, single_group: bool
) -> tuple[list[ArrangedBook], list[int], list[NDArray[np.uint16]]]:
    """(the codebooks in order, of each part its codebook's number, and its indices)."""
    users: dict[int, list[int]] = {}
    for k, part in enumerate(parts):
        users.setdefault(id(part.codebook), []).append(k)
    books: list[ArrangedBook] = []
    numbers = [0] * len(parts)
    indices: list[NDArray[np.uint16]] = [part.indices for part in parts]
    for own in users.values():
        arranged = arrange(
            parts[own[0]].codebook, [parts[k].indices for k in own], neighbours, single_group
        )
        for k, values in zip(own, arranged.indices, strict=True):
            numbers[k], indices[k] = len(books), np.ascontiguousarray(values)
        books.append(arranged)
    return books, numbers, indices


def _references(
    channels: Sequence[PlannedChannel],
    books: Sequence[ArrangedBook],
    attribute: str,
    splats: EncodedSplats,
) -> list[Reference]:
    """Earlier channels that may tell something: of the same attribute, of size, of the position."""
    same = [k for k, channel in enumerate(channels) if channel.attribute == attribute]
    others = [k for k, channel in enumerate(channels) if channel.attribute != attribute]
    chosen = same[-2:][::-1] + others[:1] + same[:1] + others[-1:]
    found = [
        Reference(k, channels[k].values, books[channels[k].book].book.size)
        for k in dict.fromkeys(chosen)
    ]
    if splats.digits is not None and attribute == "scale":
        kept = (splats.digits - 1).astype(np.uint16)
        found.insert(0, Reference(DIGITS, kept, splats.lattice.bits))
    return [reference for reference in found if reference.size > 1][:REFERENCES]


def _position_coding(
    splats: EncodedSplats, groups: Sequence[PlannedGroup], digits: ChannelCoding | None
) -> tuple[int, int]:
    """(digits to model after the first one that differs, slowest rate)."""
    largest = max(groups, key=lambda group: group.part.stop - group.part.start).part
    part = slice(largest.start, min(largest.stop, largest.start + POSITION_SAMPLE))
    cells, bits = splats.cells[part], splats.lattice.bits
    kept = np.zeros(0, np.uint8) if splats.digits is None else splats.digits[part]
    row = None if digits is None else digits.row(bits)
    best, least = (0, 8), np.inf
    for slowest in (6, 8):
        for modelled in PLACES:
            coder = _native.SplatCoder(bits, modelled, slowest, row, coding_rows([]))
            cost = coder.bits(cells, kept, [])[0]
            if cost < least:
                best, least = (modelled, slowest), cost
    return best
