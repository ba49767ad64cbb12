"""Lossless coding of splats' numbers: how each channel is best coded, and what it costs.

The coding itself is native (native/core/channel_coding.h): rANS whose models learn while they
code, so that no table is stored, with contexts from the nearest earlier splat and from an earlier
channel. docs/psplat-format.md, "Channel coding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penstock import _native

Numbers = NDArray[np.uint16]
Neighbours = NDArray[np.int32]

DIRECT, RESIDUAL, FRESH, NARROW = range(4)
NONE, NEAREST, MEAN_OF_TWO, MEAN_OF_FOUR, SLOPE, REFERENCE = range(6)
NO_REFERENCE, DIGITS = 255, 254
MAX_SIZE = 1 << 16
MOST_MODELLED = 12  # bits of a direct number
SLOWEST = 9
OTHERS = 0.03  # bits a number, at most, for those that NARROW has no symbol for
SYMBOLS = 15  # numbers that NARROW has a symbol for
FASTER = 1.01  # times the bits that numbers of half the symbols may cost
SAMPLE = 20_000
"""Numbers of a channel that its coding is chosen by; the whole is then coded by that."""

_BYTES = struct.Struct("<8B")


@dataclass(frozen=True)
class ChannelCoding:
    """How a channel is coded: the fields of the format.

    Attributes:
        mode: DIRECT, RESIDUAL (to the prediction), FRESH (numbered by first appearance) or NARROW
            (15 numbers have a symbol, the others are raw).
        raw: lowest bits that are not modelled; of NARROW the first number with a symbol.
        predictor: NONE, NEAREST, MEAN_OF_TWO, MEAN_OF_FOUR, SLOPE or REFERENCE.
        reference: number of an earlier channel, DIGITS or NO_REFERENCE.
        buckets, reference_buckets: bits of the prediction and of the reference in the context.
        slowest: rate of learning in the end; higher forgets less.
        sparse: 1: models that have reached it learn from every fourth number only, which is
            decoded in less time. Of DIRECT and NARROW. Else 0.
    """

    mode: int = DIRECT
    raw: int = 0
    predictor: int = NONE
    reference: int = NO_REFERENCE
    buckets: int = 0
    reference_buckets: int = 0
    slowest: int = 8
    sparse: int = 0

    def pack(self) -> bytes:
        return _BYTES.pack(*self._fields())

    @staticmethod
    def unpack(data: bytes) -> ChannelCoding:
        """Of 8 bytes; `problem` says whether it is allowed."""
        return ChannelCoding(*_BYTES.unpack(data))

    def row(self, size: int) -> list[int]:
        """What the native coder takes, for numbers below `size`."""
        return [size, *self._fields()]

    @property
    def uses_reference(self) -> bool:
        return self.predictor in (SLOPE, REFERENCE) or self.reference_buckets > 0

    def problem(self, size: int, earlier: int, digits: bool = False) -> str | None:
        """What the format does not allow of it, or None.

        Args:
            size: numbers are below it.
            earlier: channels that may be referred to.
            digits: whether the digits kept may be.
        """
        modelled = width_of(size) - self.raw
        referred = self.reference
        if not 1 <= size <= MAX_SIZE:
            return f"size is {size}, expected 1 to {MAX_SIZE}"
        if self.mode not in (DIRECT, RESIDUAL, FRESH, NARROW):
            return f"mode is {self.mode}, expected 0 to 3"
        if not NONE <= self.predictor <= REFERENCE:
            return f"predictor is {self.predictor}, expected 0 to 5"
        if self.buckets > 4 or self.reference_buckets > 4:
            return f"buckets are {self.buckets} and {self.reference_buckets}, expected 0 to 4"
        if not 4 <= self.slowest <= SLOWEST:
            return f"slowest is {self.slowest}, expected 4 to {SLOWEST}"
        if self.sparse > int(self.mode in (DIRECT, NARROW)):
            return f"sparse is {self.sparse}, expected 0, or 1 in modes 0 and 3"
        if referred != NO_REFERENCE and referred >= earlier and not (digits and referred == DIGITS):
            return f"reference is {referred}, expected an earlier channel ({earlier} are)"
        if self.uses_reference and referred == NO_REFERENCE:
            return "it uses a reference and names none"
        if self.mode == DIRECT and not 0 <= modelled <= MOST_MODELLED:
            return f"raw is {self.raw} of {width_of(size)} bits, expected 0 to 12 modelled ones"
        if self.mode == NARROW and self.raw >= size:
            return f"the first number with a symbol is {self.raw}, expected less than {size}"
        if self.mode not in (DIRECT, NARROW) and (self.raw or self.buckets):
            return "raw bits or buckets in a mode that has none"
        if self.mode == FRESH and (self.uses_reference or self.predictor != NONE):
            return "a prediction of fresh numbers"
        return None

    def _fields(self) -> tuple[int, int, int, int, int, int, int, int]:
        return (
            self.mode,
            self.raw,
            self.predictor,
            self.reference,
            self.buckets,
            self.reference_buckets,
            self.slowest,
            self.sparse,
        )


@dataclass(frozen=True)
class Reference:
    """A channel that another may be predicted from.

    Attributes:
        number: what the coding names it by.
        values: [n].
        size: values are below it.
    """

    number: int
    values: Numbers
    size: int


def width_of(size: int) -> int:
    """Bits of the numbers below size, 0 to 16."""
    return max(size - 1, 0).bit_length()


def plain_coding(size: int) -> ChannelCoding:
    """Without context: what every channel may be coded by."""
    return ChannelCoding(raw=max(0, width_of(size) - MOST_MODELLED))


def uncoded(size: int) -> ChannelCoding:
    """Of fixed width: no bit is modelled."""
    return ChannelCoding(raw=width_of(size))


def coding_rows(codings: Sequence[tuple[ChannelCoding, int]]) -> NDArray[np.uint32]:
    """(channels, 9), of each coding and its size."""
    rows = [coding.row(size) for coding, size in codings]
    return np.array(rows, np.uint32).reshape(-1, 9)


def coded_bits(
    values: Numbers,
    size: int,
    neighbours: Neighbours,
    coding: ChannelCoding,
    reference: Reference | None = None,
) -> float:
    """What the numbers [n] of a channel cost.

    Args:
        neighbours: [n], of each an earlier one, or -1.
        reference: that the coding names.
    """
    # Names are of the file's channels; alone, a channel has one reference, number 0.
    alone = coding if reference is None else replace(coding, reference=0)
    return _native.channel_bits(
        values,
        neighbours,
        coding_rows([(alone, size)]),
        None if reference is None else reference.values,
        1 if reference is None else reference.size,
    )


def previous(count: int, columns: int = 1) -> Neighbours:
    """Of each number the one that stands `columns` before it, or -1."""
    return np.maximum(np.arange(count, dtype=np.int64) - columns, -1).astype(np.int32)


# ---------------------------------------------------------------- choosing


def choose_coding(
    values: Numbers,
    size: int,
    neighbours: Neighbours,
    references: Sequence[Reference] = (),
    *,
    sample: int = SAMPLE,
) -> ChannelCoding:
    """The cheapest coding found for a channel, FRESH apart: a search from coarse to fine.

    Args:
        values: [n], below size.
        neighbours: [n].
        references: that it may use; a few, for each is tried.
        sample: numbers looked at, from the middle of the channel.
    """
    if size == 1 or len(values) == 0:
        return plain_coding(size)
    begin = max(0, (len(values) - sample) // 2)
    part = slice(begin, begin + sample)
    cut = np.ascontiguousarray(values[part])
    near = neighbours[part].astype(np.int64) - begin
    nearest = np.where(near < 0, -1, near).astype(np.int32)
    by_number = {
        r.number: replace(r, values=np.ascontiguousarray(r.values[part])) for r in references
    }

    def cost(coding: ChannelCoding) -> float:
        reference = by_number.get(coding.reference) if coding.uses_reference else None
        return coded_bits(cut, size, nearest, coding, reference)

    best = plain_coding(size)
    least = cost(best)
    tried = {best}
    for stage in (_kinds, _contexts, _details, _contexts):
        for coding in stage(best, size, tuple(by_number)):
            if coding in tried or coding.problem(size, 254, digits=True) is not None:
                continue
            tried.add(coding)
            bits = cost(coding)
            if bits < least:
                best, least = coding, bits
    # Fewer symbols are decoded in less time: some more bits are allowed for that.
    narrow = min(_narrow(best, values, size), key=cost, default=best)
    narrow = min(_narrow_contexts(narrow, best), key=cost, default=best)
    return narrow if cost(narrow) <= FASTER * least else best


def _narrow(best: ChannelCoding, values: Numbers, size: int) -> Iterator[ChannelCoding]:
    """One symbol instead of two, where 15 numbers in a row are nearly all there are, of all values:
    elsewhere than in the sample there may be others, which cost a symbol and all their bits."""
    if best.mode != DIRECT or not 4 < width_of(size) - best.raw <= MOST_MODELLED:
        return
    counts = np.cumsum(np.bincount(values, minlength=size + SYMBOLS))
    within = counts[SYMBOLS - 1 :] - np.concatenate([[0], counts[:-SYMBOLS]])
    for first in range(min(size, 256)):
        if (len(values) - within[first]) * width_of(size) <= OTHERS * len(values):
            yield ChannelCoding(NARROW, first)


def _narrow_contexts(narrow: ChannelCoding, best: ChannelCoding) -> Iterator[ChannelCoding]:
    if narrow.mode == NARROW:
        yield narrow
        for slowest in (7, 8):
            for buckets in range(max(best.buckets - 1, 0), best.buckets + 1):
                yield replace(best, mode=NARROW, raw=narrow.raw, buckets=buckets, slowest=slowest)


def _kinds(best: ChannelCoding, size: int, references: tuple[int, ...]) -> Iterator[ChannelCoding]:
    raw = plain_coding(size).raw
    buckets = min(4, width_of(size))
    for modelled in (0, 4):  # models of noise cost more to learn than they ever save
        yield ChannelCoding(DIRECT, max(width_of(size) - modelled, 0))
    for predictor in (NEAREST, MEAN_OF_TWO, MEAN_OF_FOUR):
        yield ChannelCoding(DIRECT, raw, predictor, buckets=buckets)
        yield ChannelCoding(RESIDUAL, predictor=predictor)
    for number in references:
        yield ChannelCoding(DIRECT, raw, REFERENCE, number, buckets)
        yield ChannelCoding(DIRECT, raw, NEAREST, number, min(3, buckets), 3)
        yield ChannelCoding(DIRECT, raw, MEAN_OF_FOUR, number, min(3, buckets), 3)
        yield ChannelCoding(DIRECT, raw, SLOPE, number, buckets)
        yield ChannelCoding(RESIDUAL, 0, SLOPE, number)
        yield ChannelCoding(RESIDUAL, 0, REFERENCE, number)
        yield ChannelCoding(RESIDUAL, 0, MEAN_OF_TWO, number, 0, 2)


def _contexts(
    best: ChannelCoding, size: int, references: tuple[int, ...]
) -> Iterator[ChannelCoding]:
    """More and fewer contexts, other references and predictors."""
    finer = range(5)
    if best.mode == DIRECT:
        for buckets in finer:
            yield replace(best, buckets=buckets)
    numbers = [best.reference] if best.reference != NO_REFERENCE else list(references)
    for number in numbers:
        for buckets in finer:
            yield replace(best, reference=number, reference_buckets=buckets)
            if best.mode == DIRECT:
                yield replace(best, reference=number, reference_buckets=buckets, buckets=2)
    for predictor in (NEAREST, MEAN_OF_TWO, MEAN_OF_FOUR):
        yield replace(best, predictor=predictor)


def _details(
    best: ChannelCoding, size: int, references: tuple[int, ...]
) -> Iterator[ChannelCoding]:
    for slowest in range(5, SLOWEST + 1):
        yield replace(best, slowest=slowest)
    if best.mode == DIRECT:
        for raw in range(width_of(size)):
            yield replace(best, raw=raw)
            yield replace(best, raw=raw, slowest=7)
