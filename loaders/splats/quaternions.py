"""Unit quaternions (w, x, y, z), the matrices that they stand for, and their packed forms."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""The three components that are stored where component i is left out."""


def matrices(quaternions: NDArray[np.floating]) -> Doubles:
    """Rotation matrices [n, 3, 3] of unit quaternions [n, 4]; they take a splat's axes to the
    world's."""
    w, x, y, z = np.asarray(quaternions, np.float64).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.asarray(rows, np.float64).transpose(2, 0, 1)


def from_matrices(rotations: NDArray[np.floating]) -> Doubles:
    """Unit quaternions [n, 4] of rotation matrices [n, 3, 3] (determinant 1), w of either sign.

    Each row of the matrix below is the quaternion times 4 of its components; the row of the
    largest component is taken, so that nothing is divided by a small number.
    """
    m = np.asarray(rotations, np.float64)
    m00, m01, m02 = m[:, 0, 0], m[:, 0, 1], m[:, 0, 2]
    m10, m11, m12 = m[:, 1, 0], m[:, 1, 1], m[:, 1, 2]
    m20, m21, m22 = m[:, 2, 0], m[:, 2, 1], m[:, 2, 2]
    rows = [
        [1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01],
        [m21 - m12, 1 + m00 - m11 - m22, m01 + m10, m02 + m20],
        [m02 - m20, m01 + m10, 1 - m00 + m11 - m22, m12 + m21],
        [m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22],
    ]
    products = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)  # [n, 4, 4]
    largest = np.argmax(np.einsum("nii->ni", products), axis=1)
    q = products[np.arange(len(m)), largest]
    return np.asarray(q / np.linalg.norm(q, axis=1, keepdims=True), np.float64)


def multiply(a: NDArray[np.floating], b: NDArray[np.floating]) -> Doubles:
    """Hamilton's products a b of quaternions [..., 4]: the rotation by b, then that by a."""
    aw, ax, ay, az = np.moveaxis(np.asarray(a, np.float64), -1, 0)
    bw, bx, by, bz = np.moveaxis(np.asarray(b, np.float64), -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def expand_smallest(largest: NDArray[np.integer], three: NDArray[np.floating]) -> Doubles:
    """Unit quaternions [n, 4] whose largest component, positive, was left out.

    Args:
        largest: [n], 0 to 3, which one.
        three: [n, 3], the others in their order.

    Three that are longer than 1, as no writer makes them, are shortened to it.
    """
    others = np.asarray(three, np.float64)
    squares = np.einsum("ni,ni->n", others, others)
    q = np.empty((len(others), 4))
    np.put_along_axis(q, OTHERS[largest], others, axis=1)
    left_out = np.sqrt(np.maximum(0, 1 - squares))
    np.put_along_axis(q, np.asarray(largest, np.intp)[:, None], left_out[:, None], axis=1)
    return np.asarray(q / np.sqrt(np.maximum(1, squares))[:, None], np.float64)


def keep_smallest(quaternions: NDArray[np.floating]) -> tuple[NDArray[np.intp], Doubles]:
    """(largest [n], three [n, 3]) of unit quaternions, the inverse of `expand_smallest`; the three
    lie between plus and minus `SMALLEST_MAX`."""
    q = np.asarray(quaternions, np.float64)
    largest = np.argmax(np.abs(q), axis=1)
    sign = np.where(np.take_along_axis(q, largest[:, None], axis=1) < 0, -1.0, 1.0)
    return largest, np.take_along_axis(q, OTHERS[largest], axis=1) * sign


SMALLEST_MAX = math.sqrt(0.5)
"""Greater than this only one component of a unit quaternion can be."""
