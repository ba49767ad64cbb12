"""The loops over splats that training needs besides the rasteriser, in native code.

Models have a row a splat, the rasteriser a row a component; `rows` are the splats that are drawn,
ascending. The same numbers come out for any number of threads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.loaders.cores import compute_threads
from penstock.loaders.splats.model import Floats, SplatModel

if TYPE_CHECKING:
    from penstock.runtime.splats.camera import Camera

Rows = NDArray[np.intp]


class TrainingLoops:
    """Threads for them."""

    def __init__(self, threads: int | None = None) -> None:
        """
        Args:
            threads: None: one for each core.
        """
        self._native = _native.SplatTraining(compute_threads(threads))

    def columns(self, values: Floats, rows: Rows) -> Floats:
        """Rows of values [n, c] as [c, m]."""
        out = np.empty((values.shape[1], len(rows)), np.float32)
        self._native.columns(_floats(values), rows, out)
        return out

    def covariances(self, model: SplatModel, rows: Rows) -> Floats:
        """xx, xy, xz, yy, yz, zz [6, m]."""
        out = np.empty((6, len(rows)), np.float32)
        self._native.covariances(_floats(model.scales), _floats(model.rotations), rows, out)
        return out

    def shape_gradients(
        self, model: SplatModel, rows: Rows, by_covariance: Floats
    ) -> tuple[Floats, Floats]:
        """(by ln scale [m, 3], by the unit quaternion and along the sphere only [m, 4]), given that
        by the covariance's six free numbers [6, m]."""
        by_scale = np.empty((len(rows), 3), np.float32)
        by_rotation = np.empty((len(rows), 4), np.float32)
        self._native.shape_gradients(
            _floats(model.scales),
            _floats(model.rotations),
            rows,
            _floats(by_covariance),
            by_scale,
            by_rotation,
        )
        return by_scale, by_rotation

    def colours(self, model: SplatModel, camera: Camera, rows: Rows) -> Floats:
        """[3, m], 0 or more, of the harmonics in the direction from the camera to the means."""
        out = np.empty((3, len(rows)), np.float32)
        eye = tuple(float(one) for one in camera.eye)
        self._native.colours(_floats(model.sh), _floats(model.means), eye, rows, out)
        return out

    def harmonics_gradients(
        self, model: SplatModel, camera: Camera, rows: Rows, colour: Floats, by_colour: Floats
    ) -> Floats:
        """By the harmonics [m, k, 3], given the colours and the gradient by them [3, m]; none flows
        through a colour of 0."""
        out = np.empty((len(rows), model.sh.shape[1], 3), np.float32)
        eye = tuple(float(one) for one in camera.eye)
        self._native.harmonics_gradients(
            _floats(model.means), eye, rows, _floats(colour), _floats(by_colour), out
        )
        return out

    def add_rows(self, total: Floats, rows: Rows, part: Floats) -> None:
        """total [n, ...] += part [m, ...] in these rows."""
        self._native.add_rows(_flat(total), rows, _flat(_floats(part)))

    def adam(
        self,
        values: Floats,
        first: Floats,
        second: Floats,
        steps: NDArray[np.int32],
        rows: Rows,
        gradient: Floats,
        rate: float,
    ) -> None:
        """A step in these rows of values [n, c], in place; the averages and the gradient are of
        their shape, and steps [n] counts each row's."""
        self._native.adam(values, first, second, steps, rows, gradient, rate)


def _floats(array: NDArray[np.floating]) -> Floats:
    """As native code takes it; itself where it is that already."""
    return np.ascontiguousarray(array, np.float32)


def _flat(array: Floats) -> Floats:
    """[n, ...] as [n, c], the same memory."""
    return array.reshape(len(array), math.prod(array.shape[1:]))
