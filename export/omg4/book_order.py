"""Puts a codebook's entries in the order in which it and its indices cost least.

A codebook means the same in any order, so that its order is worth log2(K!) bits. It is spent on one
of three things, whichever saves most:

    by first use   new entries need no index at all: best where nearly each splat has its own
    by frequency   indices are small numbers mostly
    by axis        neighbours in space, which look alike, have neighbouring indices
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.codebook import Codebook, Map
from penstock.quant.entropy import (
    FRESH,
    ChannelCoding,
    Neighbours,
    Reference,
    choose_coding,
    coded_bits,
    previous,
)

Indices = NDArray[np.uint16]
Order = NDArray[np.int64]


@dataclass(frozen=True)
class ArrangedBook:
    """A codebook without entries that nothing uses, in its final order.

    Attributes:
        indices: of each sub-vector that uses it, [n].
        fresh: whether indices are numbered by first use, and coded so.
    """

    book: Codebook
    indices: list[Indices]
    fresh: bool = False


def arrange(
    book: Codebook, indices: Sequence[Indices], neighbours: Neighbours, single_group: bool
) -> ArrangedBook:
    """The cheapest order found.

    Args:
        indices: of each sub-vector that uses the codebook, [n], in the file's order of splats.
        neighbours: [n].
        single_group: whether the file has one group; only there can numbers be given by first use.
    """
    if book.levels is None and book.map is Map.UNIFORM:
        return ArrangedBook(book, list(indices))
    joined = np.concatenate(indices) if indices else np.zeros(0, np.uint16)
    counts = np.bincount(joined, minlength=book.size)
    used = np.flatnonzero(counts)
    if len(used) == 0:
        used = np.zeros(1, np.int64)
    if book.columns == 1:
        ascending = used[np.argsort(book.entries[used, 0], kind="stable")]
        return _ordered(book, indices, ascending)
    orders = [used[np.argsort(-counts[used], kind="stable")], _by_axis(book.entries, used)]
    best, least = None, np.inf
    for order in orders:
        found = _ordered(book, indices, order)
        bits = _book_bits(found.book) + sum(
            _index_bits(own, found.book.size, neighbours) for own in found.indices
        )
        if bits < least:
            best, least = found, bits
    assert best is not None
    if single_group and len(indices) == 1 and len(joined):
        fresh = _ordered(book, indices, _by_first_use(joined))
        own = fresh.indices[0]
        bits = coded_bits(own, fresh.book.size, neighbours, ChannelCoding(mode=FRESH))
        if _book_bits(fresh.book) + bits < least:
            return ArrangedBook(fresh.book, fresh.indices, fresh=True)
    return best


def sheet_reference(values: NDArray[np.uint16], size: int) -> Reference:
    """What a codebook's levels may refer to: the one to the left."""
    left = np.concatenate([np.array([size // 2], np.uint16), values[:-1]])
    return Reference(0, left.astype(np.uint16), size)


def level_coding(book: Codebook) -> ChannelCoding | None:
    """The cheapest coding found for the levels, or None where none are stored."""
    if book.levels is None:
        return None
    flat = np.ascontiguousarray(book.levels).reshape(-1)
    above = previous(len(flat), book.columns)
    return choose_coding(flat, book.level_count, above, [sheet_reference(flat, book.level_count)])


def _ordered(book: Codebook, indices: Sequence[Indices], order: Order) -> ArrangedBook:
    """With the entries `order` only, in this order."""
    numbers = np.zeros(book.size, np.uint16)
    numbers[order] = np.arange(len(order)).astype(np.uint16)
    return ArrangedBook(book.take(order), [numbers[own] for own in indices])


def _by_first_use(indices: Indices) -> Order:
    used, first = np.unique(indices, return_index=True)
    order: Order = used[np.argsort(first, kind="stable")].astype(np.int64)
    return order


def _by_axis(entries: NDArray[np.float32], used: Order) -> Order:
    """Along the direction in which the entries differ most."""
    rows = entries[used].astype(np.float64)
    rows -= rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    axis = vectors[:, -1]
    if axis[np.argmax(np.abs(axis))] < 0:  # one of the two signs, whatever the library gives
        axis = -axis
    order: Order = used[np.argsort(rows @ axis, kind="stable")]
    return order


def _index_bits(indices: Indices, size: int, neighbours: Neighbours) -> float:
    coding = choose_coding(indices, size, neighbours)
    return coded_bits(indices, size, neighbours, coding)


def _book_bits(book: Codebook) -> float:
    coding = level_coding(book)
    if coding is None or book.levels is None:
        return 0.0
    flat = np.ascontiguousarray(book.levels).reshape(-1)
    reference = sheet_reference(flat, book.level_count) if coding.uses_reference else None
    return coded_bits(flat, book.level_count, previous(len(flat), book.columns), coding, reference)
