"""Synthetic weights that are quick to write: one tile of random numbers, repeated.

Nothing here was trained. What a benchmark needs of the weights is their size, their place on
storage, and that
activations stay finite through every layer; two further properties are built in on purpose:

- OPT: the up bias is set so that about a third of all pre-activations is positive, as a third of
the neurons that
  the paper's predictors name is truly active.
- Arcee: with `all_active`, one constant block of the residual stream, which every up row sees with
the same sign, makes
  every pre-activation positive, so that dense decoding really multiplies with every row.

A block-format tile has one scale everywhere, so the same weights can be written by rows and by
columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.quant.blocks import FORMATS, encode_rows

BLOCK = 32
Q8_BLOCK_BYTES = 34
CHUNK_BYTES = 16 << 20
FIRST_BLOCK = 127  # the constant block's quants, in embedding and up rows


def row_bytes(dtype: str, width: int) -> int:
    """Bytes of a row of `width` weights, as docs/bundle-format.md has them."""
    return width * 2 if dtype == "F16" else width // BLOCK * Q8_BLOCK_BYTES


@dataclass(frozen=True)
class Recipe:
    """How a kind of matrix is drawn.

    Attributes:
        step: the scale of a Q8_0 block; a power of two, which half precision holds exactly.
        spread: quants are uniform in -spread .. spread; F16 weights are normal with the same
        deviation.
        first_block: quant of each of a row's first 32 columns; None draws them as the others.
    """

    step: float
    spread: int = 127
    first_block: int | None = None

    @property
    def deviation(self) -> float:
        return self.step * float(np.sqrt(self.spread * (self.spread + 1) / 3))


@dataclass(frozen=True)
class Tile:
    """Rows of one recipe. Row i of a matrix that starts at `shift` is row (shift + i) % rows."""

    dtype: str
    width: int
    step: float
    values: (
        NDArray[np.int8] | NDArray[np.float16]
    )  # (rows, width): quants, or the weights themselves
    stored: NDArray[np.uint8]  # (rows, row bytes)

    @staticmethod
    def draw(recipe: Recipe, dtype: str, rows: int, width: int, seed: int) -> Tile:
        random = np.random.default_rng(seed)
        if dtype == "F16":
            numbers = random.standard_normal((rows, width), np.float32) * np.float32(
                recipe.deviation
            )
            if recipe.first_block is not None:
                numbers[:, :BLOCK] = recipe.first_block * recipe.step
            halves = numbers.astype(np.float16)
            return Tile(dtype, width, recipe.step, halves, halves.view(np.uint8).reshape(rows, -1))
        quants = random.integers(-recipe.spread, recipe.spread + 1, (rows, width), np.int8)
        if recipe.first_block is not None:
            quants[:, :BLOCK] = recipe.first_block
        if dtype == "Q4_0":
            form = FORMATS["Q4_0"]
            numbers = quants.astype(np.float32) * np.float32(recipe.step)
            return Tile(dtype, width, recipe.step, quants, encode_rows(numbers, form))
        return Tile(dtype, width, recipe.step, quants, q8_rows(quants, recipe.step))

    def rows(self, shift: int, first: int, count: int) -> NDArray[np.uint8]:
        """Stored rows first .. first + count of the matrix that starts at `shift`."""
        at = (shift + first) % len(self.stored)
        whole = self.stored[at : at + count]
        if len(whole) == count:
            return whole
        index = (np.arange(at, at + count)) % len(self.stored)
        return self.stored[index]

    def chunks(self, shift: int, count: int) -> Iterator[NDArray[np.uint8]]:
        """A matrix of `count` rows, some megabytes at a time."""
        step = max(1, min(len(self.stored), CHUNK_BYTES // self.stored.shape[1]))
        for first in range(0, count, step):
            part = self.rows(shift, first, min(step, count - first))
            yield np.ascontiguousarray(part).reshape(-1)

    def transposed(self, shift: int, count: int) -> NDArray[np.uint8]:
        """The matrix (count, width) by columns: stored rows of its transpose (width, count)."""
        index = (shift + np.arange(count)) % len(self.values)
        columns = np.ascontiguousarray(self.values[index].T)
        if self.dtype == "F16":
            return columns.view(np.uint8).reshape(self.width, -1)
        return q8_rows(columns.view(np.int8), self.step)


def q8_rows(quants: NDArray[np.int8], step: float) -> NDArray[np.uint8]:
    """int8 quants (rows, width) of one common scale -> Q8_0 rows."""
    rows, width = quants.shape
    out = np.empty((rows, width // BLOCK, Q8_BLOCK_BYTES), np.uint8)
    out[:, :, :2] = np.frombuffer(np.float16(step).tobytes(), np.uint8)
    out[:, :, 2:] = quants.view(np.uint8).reshape(rows, width // BLOCK, BLOCK)
    return out.reshape(rows, -1)


def bundle_chunks(
    up: Tile, down: Tile, shift: int, neurons: int, stride: int
) -> Iterator[NDArray[np.uint8]]:
    """A layer's bundles: | up row | down column | zeros |, some megabytes at a time."""
    length = up.stored.shape[1]
    step = max(1, CHUNK_BYTES // stride)
    for first in range(0, neurons, step):
        count = min(step, neurons - first)
        block = np.zeros((count, stride), np.uint8)
        block[:, :length] = up.rows(shift, first, count)
        block[:, length : 2 * length] = down.rows(shift, first, count)
        yield block.reshape(-1)
