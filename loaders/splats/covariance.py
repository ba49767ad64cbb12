"""Covariances of splats, and the 4D Gaussians of "Real-Time 4D Gaussian Splatting" as moving ones.

That paper (Yang et al., arXiv 2310.10642; fudan-zvg/4d-gaussian-splatting) gives a splat a 4D
covariance by two quaternions and four scales. At one time it is a 3D Gaussian whose shape does not
change, whose mean moves in a straight line, and whose weight is a Gaussian of time. So everything
but mean and opacity can be computed once, here, and a renderer knows one kind of splat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.model import Floats
from penstock.loaders.splats.quaternions import Doubles, from_matrices, matrices, multiply

BLOCK = 1 << 16  # splats at a time, so that temporary arrays stay small


@dataclass(frozen=True)
class RotorSlice:
    """What 4D covariances are in space and time.

    Attributes:
        scales: [n, 3], standard deviations at any one time, ascending.
        rotations: [n, 4], unit quaternions.
        velocities: [n, 3], a second.
        t_sigmas: [n], seconds.
    """

    scales: Floats
    rotations: Floats
    velocities: Floats
    t_sigmas: Floats


def covariances(scales: NDArray[np.floating], rotations: NDArray[np.floating]) -> Floats:
    """R diag(scales^2) R^T as xx, xy, xz, yy, yz, zz [n, 6], of scales [n, 3] and unit quaternions
    [n, 4]."""
    out = np.empty((len(scales), 6), np.float32)
    for part in blocks(len(scales)):
        # Component by component: numpy multiplies many small matrices one by one.
        rows = matrices(rotations[part]).transpose(1, 2, 0) * np.asarray(scales[part], np.float64).T
        for column, (i, j) in enumerate(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))):
            out[part, column] = (rows[i] * rows[j]).sum(axis=0)
    return out


def rotor_matrices(left: NDArray[np.floating], right: NDArray[np.floating]) -> Doubles:
    """4D rotations [n, 4, 4], axes x, y, z, t, of unit quaternions left and right [n, 4].

    The point (x, y, z, t) is the quaternion t + z i + y j + x k; it becomes left times it times
    the conjugate of right. Row j of the paper's matrices is where basis quaternion j goes.
    """
    conjugate = np.asarray(right, np.float64) * np.array([1.0, -1.0, -1.0, -1.0])
    basis = np.eye(4)[::-1]  # x, y, z and t as quaternions (w, i, j, k)
    left_times = multiply(np.asarray(left, np.float64)[:, None, :], basis[None])
    images = multiply(left_times, conjugate[:, None, :])  # [n, axis, component]
    return images[:, :, ::-1].transpose(0, 2, 1)


def slice_rotors(
    scales: NDArray[np.floating],
    left: NDArray[np.floating],
    right: NDArray[np.floating],
) -> RotorSlice:
    """4D covariances R diag(scales^2) R^T, all finite, as splats that move.

    With the covariance's factor L = R diag(scales), its first three rows L3 and its last row l:
    t_sigma = |l|, velocity = L3 l / |l|^2, and the covariance at any one time is B B^T with
    B = L3 - (L3 u) u^T, u = l / |l|. That is the Schur complement S11 - S12 S12^T / Stt, which
    would lose a thin splat's small scales to cancellation, without a difference of large numbers.

    Args:
        scales: [n, 4], standard deviations along the splat's axes, the last meant for time.
        left, right: [n, 4], unit quaternions.
    """
    n = len(scales)
    out = RotorSlice(
        np.empty((n, 3), np.float32),
        np.empty((n, 4), np.float32),
        np.empty((n, 3), np.float32),
        np.empty(n, np.float32),
    )
    for part in blocks(n):
        factor = rotor_matrices(left[part], right[part])
        factor *= np.asarray(scales[part], np.float64)[:, None, :]
        space, time = factor[:, :3], factor[:, 3]
        length = np.linalg.norm(time, axis=1)
        unit = time / np.where(length > 0, length, 1)[:, None]
        along = np.einsum("nij,nj->ni", space, unit)  # L3 u
        across = space - along[:, :, None] * unit[:, None, :]
        out.scales[part], out.rotations[part] = decompose(across @ across.transpose(0, 2, 1))
        with np.errstate(over="ignore"):  # too fast for float32: the model's check finds it
            out.velocities[part] = along / np.where(length > 0, length, 1)[:, None]
        out.t_sigmas[part] = length
    return out


def join_rotors(
    scales: NDArray[np.floating],
    rotations: NDArray[np.floating],
    velocities: NDArray[np.floating],
    t_sigmas: NDArray[np.floating],
) -> tuple[Doubles, Doubles, Doubles]:
    """(scales [n, 4], left [n, 4], right [n, 4]) whose slice these splats are.

    The inverse of `slice_rotors` up to the order and the signs of the axes.
    """
    n = len(scales)
    scales4, left, right = np.empty((n, 4)), np.empty((n, 4)), np.empty((n, 4))
    for part in blocks(n):
        factor = np.zeros((len(scales[part]), 4, 4))
        turned = matrices(rotations[part])
        factor[:, :3, :3] = turned * np.asarray(scales[part], np.float64)[:, None, :]
        sigma = np.asarray(t_sigmas[part], np.float64)
        factor[:, :3, 3] = np.asarray(velocities[part], np.float64) * sigma[:, None]
        factor[:, 3, 3] = sigma
        axes, lengths, _ = np.linalg.svd(factor)
        axes[:, :, 3] *= np.sign(np.linalg.det(axes))[:, None]  # a rotation, not a reflection
        scales4[part] = lengths
        left[part], right[part] = rotor_quaternions(axes)
    return scales4, left, right


def rotor_quaternions(rotations: NDArray[np.floating]) -> tuple[Doubles, Doubles]:
    """The quaternions (left, right), [n, 4] each, of 4D rotations [n, 4, 4], axes x, y, z, t.

    A rotation is the sum of left_a right_b E_ab over the sixteen maps v -> e_a v conj(e_b), which
    are orthogonal to each other; so its products with them are the matrix left right^T.
    """
    eye = np.eye(4)
    maps = rotor_matrices(np.repeat(eye, 4, axis=0), np.tile(eye, (4, 1))).reshape(4, 4, 4, 4)
    outer = np.einsum("abij,nij->nab", maps, rotations) / 4
    flat = np.argmax(np.abs(outer).reshape(-1, 16), axis=1)
    left = outer[np.arange(len(outer)), :, flat % 4]
    left = left / np.linalg.norm(left, axis=1, keepdims=True)
    right = np.einsum("nab,na->nb", outer, left)
    return left, right / np.linalg.norm(right, axis=1, keepdims=True)


def decompose(full: Doubles) -> tuple[Floats, Floats]:
    """(scales [n, 3], ascending, unit quaternions [n, 4]) of covariances [n, 3, 3], finite ones."""
    variances, axes = np.linalg.eigh(full)
    axes[:, :, 2] *= np.sign(np.linalg.det(axes))[:, None]  # a rotation, not a reflection
    scales = np.sqrt(np.maximum(variances, 0)).astype(np.float32)
    return scales, from_matrices(axes).astype(np.float32)


def blocks(count: int) -> Iterator[slice]:
    """Ranges of at most `BLOCK` splats."""
    for begin in range(0, count, BLOCK):
        yield slice(begin, min(begin + BLOCK, count))
