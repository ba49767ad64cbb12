"""Batches of super-blocks, turned so that NumPy works along them.

K-quants cut a row into super-blocks of 256 elements and those into sub-blocks of 32 or 16
(ggml/src/ggml-common.h in llama.cpp). NumPy is slow on axes as short as that. Here the elements
of a sub-block lie along the first axis and all sub-blocks of a batch along the second, so that
each sum over a sub-block is a few long additions. A batch stays in the second-level cache.

Each super-block is scaled by a power of two to a largest magnitude of 0.5 to 1 and its weights to
at most 1: no intermediate value overflows or is subnormal, whatever the tensor. Scales are
rounded to float16 in the tensor's own units.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, UsageError
from penstock.quant.blocks import F16_MAX, BlockFormat

Floats = NDArray[np.float32]

SUPER_BLOCK = 256  # elements
BATCH = 256  # super-blocks; each array of a batch is then 256 KiB
# Batches are filled up to a multiple of this, so that a block's sums are added up in the same
# order whatever else is in its batch.
FILL = 16
F16_MAX_BITS = 0x7BFF
F16_STEP = 2.0**-24  # the smallest float16 above zero
LEAST_WEIGHT = 1e-10  # of sub-blocks without weight, where the super-block's heaviest element is 1
# Next to a largest magnitude of 0.5 to 1, less than this is zero in any of these formats.
LEAST_VALUE = 2.0**-40


class Batch:
    """Some super-blocks of a tensor, for one way of cutting them into sub-blocks.

    Attributes:
        values: (elements of a sub-block, sub-blocks), scaled; the sub-blocks are ordered by their
            place in the super-block, then by super-block.
        weights: of the same shape, or None where all are 1.
        weight_sums: of each sub-block, (sub-blocks,).
        units: what one unit of `values` is in the tensor, (super-blocks,); powers of two.
    """

    def __init__(self, values: Floats, weights: Floats | None, sub_blocks: int) -> None:
        """Of `values` and `weights`, both (super-blocks, 256)."""
        self.sub_blocks = sub_blocks
        largest = np.abs(values).max(1)
        # Every value of these formats is a multiple of F16_STEP, so zero is the nearest.
        largest[largest <= F16_STEP / 2] = 0
        self.units: Floats = np.ldexp(np.float32(1), np.frexp(largest)[1]).astype(np.float32)
        factors = np.where(largest > 0, 1 / self.units, np.float32(0))
        scaled = values * factors[:, None]
        scaled[np.abs(scaled) < LEAST_VALUE] = 0
        self.values = self._turned(scaled)
        self.weights: Floats | None = None
        if weights is None:
            elements, count = self.values.shape
            self.weight_sums: Floats = np.full(count, elements, np.float32)
        else:
            heaviest = weights.max(1)[:, None]
            weighs = heaviest > 0
            turned = self._turned(np.where(weighs, weights, 1) / np.where(weighs, heaviest, 1))
            turned[:, turned.max(0) < LEAST_WEIGHT] = LEAST_WEIGHT
            self.weights = turned
            self.weight_sums = turned.sum(0)

    def _turned(self, blocks: NDArray[np.floating]) -> Floats:
        cut = blocks.astype(np.float32).reshape(len(blocks), self.sub_blocks, -1)
        return np.ascontiguousarray(cut.transpose(2, 1, 0)).reshape(cut.shape[2], -1)

    def turned_back(self, elements: Floats) -> Floats:
        """Of the shape of `values`, as (super-blocks, sub-blocks, elements)."""
        cut = elements.reshape(len(elements), self.sub_blocks, -1)
        return np.ascontiguousarray(cut.transpose(2, 1, 0))

    def by_super_block(self, of_sub_blocks: Floats) -> Floats:
        """(sub-blocks of the batch,) as (sub-blocks of a super-block, super-blocks)."""
        return of_sub_blocks.reshape(self.sub_blocks, -1)

    def spread(self, of_super_blocks: Floats) -> Floats:
        """(super-blocks,) as (sub-blocks of the batch,): each has its super-block's value."""
        return np.tile(of_super_blocks, self.sub_blocks)

    def total(self, a: Floats, b: Floats | None = None) -> Floats:
        """The sum over each sub-block of a, or of a times b. Apply `weighted` to one of them."""
        sums: Floats = np.add.reduce(a, axis=0) if b is None else np.einsum("es,es->s", a, b)
        return sums

    def weighted(self, a: Floats, out: Floats) -> Floats:
        """The weights times `a`, written to `out`; `a` itself where all weights are 1."""
        return a if self.weights is None else np.multiply(a, self.weights, out=out)

    def to_half(self, scales: Floats) -> Floats:
        """The nearest scales (..., super-blocks) that float16 can hold.

        What is not zero stays so: the smallest float16 serves better than none.
        """
        in_tensor = np.clip(scales * self.units, -F16_MAX, F16_MAX)
        half = in_tensor.astype(np.float16).astype(np.float32)
        lost = (half == 0) & (scales != 0)
        half[lost] = np.copysign(np.float32(F16_STEP), scales[lost])
        held: Floats = half / self.units
        return held

    def halves_near(self, scales: Floats, reach: int) -> Floats:
        """The float16 numbers nearest to scales of 0 or more, (2 * reach + 1, super-blocks)."""
        half = np.minimum(scales * self.units, F16_MAX).astype(np.float16)
        order = half.view(np.uint16).astype(np.int32) + np.arange(-reach, reach + 1)[:, None]
        half = np.clip(order, 0, F16_MAX_BITS).astype(np.uint16).view(np.float16)
        near: Floats = half.astype(np.float32) / self.units
        return near

    def half_bytes(self, scales: Floats) -> NDArray[np.uint8]:
        """Scales (super-blocks,) that `to_half` returned, as little-endian bytes (n, 2)."""
        half = (scales * self.units).astype("<f2")
        return half.view(np.uint8).reshape(-1, 2)


def extremes(rows: Floats) -> Floats:
    """The values of the largest magnitude along the first axis."""
    highest, lowest = rows.max(0), rows.min(0)
    found: Floats = np.where(highest >= -lowest, highest, lowest)
    return found


def batches(
    values: NDArray[np.float32],
    weights: Floats | None,
    form: BlockFormat,
    sub_blocks: int,
    limit: float,
) -> Iterator[tuple[slice, Batch]]:
    """The tensor's super-blocks in batches, each with their place in the tensor.

    The last batch is filled up with zeros: only as many blocks count as the slice has.

    Raises:
        FormatError: a value is NaN, infinite or beyond `limit`.
        UsageError: a weight is NaN, infinite or negative.
    """
    blocks_of_row = values.shape[1] // SUPER_BLOCK
    blocks = np.ascontiguousarray(values).reshape(-1, SUPER_BLOCK)
    weight_blocks = None if weights is None else np.ascontiguousarray(weights)
    if weight_blocks is not None:
        weight_blocks = weight_blocks.reshape(-1, SUPER_BLOCK)
    for start in range(0, len(blocks), BATCH):
        place = slice(start, min(start + BATCH, len(blocks)))
        count = place.stop - start
        filled = np.zeros((-(-count // FILL) * FILL, SUPER_BLOCK), np.float32)
        with np.errstate(over="ignore"):  # float64 beyond float32 is infinite, and refused
            filled[:count] = blocks[place]
        _check_values(filled[:count], form, limit, start, blocks_of_row)
        filled_weights = None
        if weight_blocks is not None:
            filled_weights = np.ones_like(filled)
            # Weights of columns are the same for each row.
            with np.errstate(over="ignore"):
                filled_weights[:count] = weight_blocks[
                    np.arange(start, place.stop) % len(weight_blocks)
                ]
            _check_weights(filled_weights[:count], start, blocks_of_row)
        yield place, Batch(filled, filled_weights, sub_blocks)


def _check_values(
    blocks: Floats, form: BlockFormat, limit: float, start: int, blocks_of_row: int
) -> None:
    """Refuse what the format cannot hold; `start` is the place of the first block."""
    magnitudes = np.abs(blocks)
    if magnitudes.max() <= limit:  # false for NaN, too
        return
    block, at = np.argwhere(~(magnitudes <= limit))[0]
    row, column = _place(start + int(block), int(at), blocks_of_row)
    value = float(blocks[block, at])
    advice = "store this tensor as F32" if np.isfinite(value) else "check its source"
    raise FormatError(
        f"row {row}, column {column}: a weight is {value:g}; {form.name} holds finite values up "
        f"to {limit:g}; {advice}"
    )


def _check_weights(blocks: Floats, start: int, blocks_of_row: int) -> None:
    usable = (blocks >= 0) & (blocks < np.inf)
    if usable.all():
        return
    block, at = np.argwhere(~usable)[0]
    row, column = _place(start + int(block), int(at), blocks_of_row)
    raise UsageError(
        f"row {row}, column {column}: an importance weight is {float(blocks[block, at]):g}; "
        f"expected finite values of 0 or more; check the calibration that they are from"
    )


def _place(block: int, at: int, blocks_of_row: int) -> tuple[int, int]:
    return block // blocks_of_row, block % blocks_of_row * SUPER_BLOCK + at
