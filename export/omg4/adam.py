"""Adam (Kingma and Ba, arXiv 1412.6980) for rows of which few have a gradient at a time.

A splat that no camera of a step saw is left as it is, and so are its moments: it would drift
otherwise. Each row counts its own steps for the bias correction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FIRST, SECOND, LEAST = 0.9, 0.999, 1e-15


class Adam:
    """Steps for one contiguous array [n, ...], which it changes in place."""

    def __init__(self, values: Floats, rate: float) -> None:
        self.values = values
        self.rate = rate
        if not values.flags.c_contiguous:
            raise ValueError("values that are not contiguous cannot be changed in place")
        self._flat = values.reshape(len(values), math.prod(values.shape[1:]))
        self._first = np.zeros_like(self._flat)
        self._second = np.zeros_like(self._flat)
        self._steps = np.zeros(len(values), np.int32)

    def step(
        self, rows: NDArray[np.integer], gradient: NDArray[np.floating], factor: float = 1.0
    ) -> None:
        """One step of `rate` times factor for these rows, ascending, whose gradients are [m, ...].

        What is not finite in a gradient counts as 0.
        """
        g = np.array(gradient, np.float32).reshape(len(rows), self._flat.shape[1])
        np.copyto(g, np.float32(0), where=~np.isfinite(g))
        # All rows need no gathering.
        at: slice | NDArray[np.integer] = slice(None) if len(rows) == len(self.values) else rows
        self._steps[at] += 1
        count = self._steps[at].astype(np.float64)[:, None]
        first, second = self._first[at], self._second[at]  # copies, or the arrays themselves
        first *= np.float32(FIRST)
        first += np.float32(1 - FIRST) * g
        second *= np.float32(SECOND)
        np.square(g, out=g)
        g *= np.float32(1 - SECOND)
        second += g
        self._first[at], self._second[at] = first, second
        # rate (m / (1 - b1^t)) / sqrt(v / (1 - b2^t)): what is a row's own comes to one factor.
        size = self.rate * factor * np.sqrt(1 - SECOND**count) / (1 - FIRST**count)
        np.sqrt(second, out=g)
        g += np.float32(LEAST)
        np.divide(first, g, out=g)
        g *= size.astype(np.float32)
        self._flat[at] -= g


def rows_of(shape: tuple[int, ...], active: Iterable[NDArray[np.integer]]) -> NDArray[np.intp]:
    """The rows of [n, ...] that are in any of the lists, ascending."""
    touched = np.zeros(shape[0], np.bool_)
    for indices in active:
        touched[indices] = True
    return np.flatnonzero(touched)
