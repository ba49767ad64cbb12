"""Morton codes: the bits of three coordinates, interleaved; near codes are near in space mostly.

Octal digit l of a code is x + 2 y + 4 z of the coordinates' bits at that place, so 2^21 cells along
each axis make codes of 63 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint64]

# (how far bits are moved, which are kept): from 21 bits in a row to every third of 63.
_STEPS = (
    (32, 0x001F00000000FFFF),
    (16, 0x001F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def morton_codes(cells: NDArray[np.uint32]) -> Codes:
    """Codes [n] of cells [n, 3], coordinates below 2^21."""
    codes: Codes = np.zeros(len(cells), np.uint64)
    for axis in range(3):
        codes |= _spread(cells[:, axis].astype(np.uint64)) << np.uint64(axis)
    return codes


def _spread(numbers: Codes) -> Codes:
    v = numbers & np.uint64(0x1FFFFF)
    for shift, kept in _STEPS:
        v = (v | v << np.uint64(shift)) & np.uint64(kept)
    return v
