"""Colours of splats towards a camera, and their gradient by spherical harmonics.

The rasteriser evaluates harmonics by itself (native/core/splat_colour.cpp); this is for those who
train them, and for splats of one colour.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penstock.loaders.splats.harmonics import C0, basis
from penstock.loaders.splats.model import SH_COUNTS

__all__ = ["C0", "coefficient_gradient", "colours_from", "directions_from"]

Doubles = NDArray[np.float64]


def directions_from(eye: ArrayLike, means: NDArray[np.floating]) -> Doubles:
    """Unit directions [n, 3] from a point [3] to splats' means [n, 3]; 0 where they are one."""
    away = np.asarray(means, np.float64) - np.asarray(eye, np.float64)
    length = np.sqrt(np.einsum("ni,ni->n", away, away))
    directions: Doubles = away / np.maximum(length, math.sqrt(1e-30))[:, None]
    return directions


def colours_from(
    eye: ArrayLike, means: NDArray[np.floating], sh: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Red, green and blue [n, 3], 0 or more, of splats that are seen from a point.

    Args:
        eye: [3]. means: [n, 3], not moved. sh: [n, k, 3].
    """
    functions = basis(directions_from(eye, means), SH_COUNTS[sh.shape[1]])
    colours = 0.5 + np.einsum("nk,nkc->nc", functions, np.asarray(sh, np.float64))
    return np.asarray(np.maximum(colours, 0), np.float32)


def coefficient_gradient(
    eye: ArrayLike,
    means: NDArray[np.floating],
    colours: NDArray[np.floating],
    by_colour: NDArray[np.floating],
    coefficients: int,
) -> NDArray[np.float32]:
    """The gradient of a loss by `sh` [n, k, 3], given that by the colours seen from `eye` [n, 3].

    Args:
        colours: [n, 3], as `colours_from` gives them: nothing flows through one that was cut off.
        coefficients: k.
    """
    functions = basis(directions_from(eye, means), SH_COUNTS[coefficients])
    flows = np.where(np.asarray(colours) > 0, by_colour, 0.0)
    return np.asarray(np.einsum("nk,nc->nkc", functions, flows), np.float32)
