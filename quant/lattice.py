"""Positions as cells of a lattice, each splat with as many binary digits as its size asks for.

A splat of a standard deviation of 10 cm need not be placed to a tenth of a millimetre. Its cell
keeps only the leading digits of its Morton code, so that the cells that are left are a fixed part
of the splat's own size. docs/psplat-format.md, "Positions".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

Cells = NDArray[np.uint32]

MAX_BITS = 21
MOST_LINEAR = 1e15  # a corner's coordinate
MOST_LOGARITHM = 40.0
LEAST_EXTENT = 1e-9  # of a scene whose splats are all in one place


@dataclass(frozen=True)
class Lattice:
    """2^bits cells along each axis; linear, or in the symmetric logarithm sign(x) ln(1 + |x|).

    Attributes:
        bits: 1 to 21.
        low: the corner of cell (0, 0, 0), in world units or their logarithm.
        step: a cell's edges, over 0.
        symmetric_log: whether cells are of the logarithm, as SOG has them.
    """

    bits: int
    low: tuple[float, float, float]
    step: tuple[float, float, float]
    symmetric_log: bool = False

    @staticmethod
    def fit(means: NDArray[np.floating], *, bits: int) -> Lattice:
        """Cubes that cover the means [n, 3], 2^bits along each axis.

        Raises:
            UsageError: bits outside 1 to 21, or means that are not finite.
        """
        low, extent = _box(means)
        if not 1 <= bits <= MAX_BITS:
            raise UsageError(f"a lattice of {bits} bits; expected 1 to {MAX_BITS}")
        edge = max(extent, LEAST_EXTENT) * (1 + 1e-12) / (1 << bits)
        return Lattice(bits, low, (edge, edge, edge))

    def problem(self) -> str | None:
        """What the format does not allow of it, or None."""
        numbers = (*self.low, *self.step)
        if not 1 <= self.bits <= MAX_BITS:
            return f"{self.bits} bits, expected 1 to {MAX_BITS}"
        if not all(math.isfinite(number) for number in numbers) or min(self.step) <= 0:
            return f"low {self.low} and step {self.step}, expected finite numbers, and steps over 0"
        most = MOST_LOGARITHM if self.symmetric_log else MOST_LINEAR
        for low, step in zip(self.low, self.step, strict=True):
            if max(abs(low), abs(low + step * (1 << self.bits))) > most:
                return f"corners beyond {most:g}"
        return None

    def cells(self, means: NDArray[np.floating], digits: NDArray[np.uint8] | None = None) -> Cells:
        """The cells [n, 3] that the means [n, 3] are in, or the nearest ones.

        Args:
            digits: [n], leading digits kept, 1 to bits; None: all. The others are zeros.
        """
        u = np.asarray(means, np.float64)
        if self.symmetric_log:
            u = np.sign(u) * np.log1p(np.abs(u))
        places = np.floor((u - np.array(self.low)) / np.array(self.step))
        cells: Cells = np.clip(places, 0, (1 << self.bits) - 1).astype(np.uint32)
        if digits is not None:
            dropped = (self.bits - digits.astype(np.uint32))[:, None]
            cells = cells >> dropped << dropped
        return cells

    def centres(self, cells: Cells, digits: NDArray[np.uint8] | None = None) -> NDArray[np.float32]:
        """The middles [n, 3] of the cells that are left, in world units."""
        half: NDArray[np.float64] | float = 0.5
        if digits is not None:
            half = np.ldexp(0.5, self.bits - digits.astype(np.int32))
        out = np.empty(cells.shape, np.float32)
        for axis in range(3):  # numpy takes longer for rows of three than for columns
            u = self.low[axis] + self.step[axis] * (cells[:, axis] + half)
            out[:, axis] = np.sign(u) * np.expm1(np.abs(u)) if self.symmetric_log else u
        return out


def digits_by_size(
    scales: NDArray[np.floating], lattice: Lattice, parts: float = 8.0
) -> NDArray[np.uint8]:
    """Digits to keep [n], so that an edge of what is left is 0.5/parts to 1/parts of a splat.

    Args:
        scales: [n, 3], standard deviations in world units. The middle one counts: the smallest is
            a disc's thickness, the largest a needle's length.
        parts: the edge of what is left is at most the middle one divided by this.

    Raises:
        UsageError: the lattice is logarithmic, whose cells are of many sizes.
    """
    if lattice.symmetric_log:
        raise UsageError("digits by size need a linear lattice")
    if not (math.isfinite(parts) and parts > 0):
        raise UsageError(f"{parts} cells a standard deviation; expected a number over 0")
    middle = np.sort(np.asarray(scales, np.float64), axis=1)[:, 1]
    edges = np.maximum(middle / (parts * max(lattice.step)), 1.0)
    dropped = np.clip(np.floor(np.log2(edges)), 0, lattice.bits - 1)
    digits: NDArray[np.uint8] = (lattice.bits - dropped).astype(np.uint8)
    return digits


def _box(means: NDArray[np.floating]) -> tuple[tuple[float, float, float], float]:
    """(the lowest corner, the longest edge) of the means [n, 3]."""
    if means.size == 0:
        return (0.0, 0.0, 0.0), 0.0
    lowest, highest = means.min(axis=0).astype(float), means.max(axis=0).astype(float)
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
        raise UsageError("means that are not finite have no place in a lattice")
    x, y, z = (float(v) for v in lowest)
    return (x, y, z), float((highest - lowest).max())
