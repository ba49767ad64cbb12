"""Adam (Kingma and Ba, arXiv 1412.6980) for rows of which few have a gradient at a time.

A splat that no camera of a step saw is left as it is, and so are its moments: it would drift
otherwise. Each row counts its own steps for the bias correction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.training_loops import TrainingLoops

Floats = NDArray[np.float32]


class Adam:
    """Steps for one contiguous array [n, ...], which it changes in place."""

    def __init__(self, values: Floats, rate: float, loops: TrainingLoops) -> None:
        self.values = values
        self.rate = rate
        if not values.flags.c_contiguous:
            raise ValueError("values that are not contiguous cannot be changed in place")
        self._loops = loops
        self._flat = values.reshape(len(values), math.prod(values.shape[1:]))
        self._first = np.zeros_like(self._flat)
        self._second = np.zeros_like(self._flat)
        self._steps = np.zeros(len(values), np.int32)

    def step(self, rows: NDArray[np.intp], gradient: Floats, factor: float = 1.0) -> None:
        """One step of `rate` times factor for these rows, ascending; the gradient is of the values'
        shape [n, ...].

        What is not finite in a gradient counts as 0.
        """
        by_values = np.ascontiguousarray(gradient, np.float32).reshape(self._flat.shape)
        self._loops.adam(
            self._flat,
            self._first,
            self._second,
            self._steps,
            rows,
            by_values,
            self.rate * factor,
        )


def rows_of(shape: tuple[int, ...], active: Iterable[NDArray[np.integer]]) -> NDArray[np.intp]:
    """The rows of [n, ...] that are in any of the lists, ascending."""
    touched = np.zeros(shape[0], np.bool_)
    for indices in active:
        touched[indices] = True
    return np.flatnonzero(touched)
