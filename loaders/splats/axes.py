"""Scenes of other frames (y up, z up, left-handed) brought to x right, y down, z forward."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.harmonics import turned_coefficients
from penstock.loaders.splats.model import SplatModel, SplatMotion
from penstock.loaders.splats.quaternions import from_matrices, multiply


def change_axes(model: SplatModel, axes: NDArray[np.floating]) -> SplatModel:
    """The scene with every point p at axes p.

    Covariances S become axes S axes^T. A reflection does the same to them as its negative, which
    is a rotation; so rotations are turned by that one, and stay rotations.

    Args:
        axes: [3, 3], orthogonal.
    """
    matrix = np.asarray(axes, np.float64)
    if np.array_equal(matrix, np.eye(3)):
        return model
    turn = from_matrices((matrix * np.sign(np.linalg.det(matrix)))[None])[0]
    k = model.sh.shape[1]
    colours = turned_coefficients(matrix)[:k, :k].astype(np.float32)
    motion = model.motion
    if motion is not None:
        motion = SplatMotion(
            _turned(motion.velocities, matrix),
            motion.t_centers,
            motion.t_sigmas,
            motion.start,
            motion.end,
            motion.fps,
        )
    return SplatModel(
        _turned(model.means, matrix),
        model.scales,
        multiply(turn[None], model.rotations).astype(np.float32),
        model.opacities,
        np.ascontiguousarray(np.einsum("kj,njc->nkc", colours, model.sh)),
        motion,
    )


def axes_of(
    right: NDArray[np.floating], up: NDArray[np.floating], forward: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The matrix for `change_axes` of a frame, by what its unit vectors mean.

    Args:
        right, up, forward: [3], the file's coordinates of these directions.
    """
    return np.array([right, np.negative(up), forward], np.float64)


def _turned(vectors: NDArray[np.float32], axes: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.ascontiguousarray((vectors.astype(np.float64) @ axes.T).astype(np.float32))
