"""From the gradient by a covariance to those by the scales and the rotation that make it.

Sigma = M M^T with M = R diag(s). With G = dL/dSigma as a full symmetric matrix

    dL/dM = 2 G M      dL/d(ln s_a) = sum_i dL/dM_ia M_ia      dL/dR_ia = dL/dM_ia s_a
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.quaternions import matrices

Doubles = NDArray[np.float64]


def shape_gradients(
    scales: NDArray[np.floating],
    rotations: NDArray[np.floating],
    by_covariance: NDArray[np.floating],
) -> tuple[Doubles, Doubles]:
    """(by ln scale [m, 3], by quaternion [m, 4], along the unit sphere only).

    Args:
        scales: [m, 3], linear. rotations: [m, 4], unit quaternions.
        by_covariance: [m, 6], by xx, xy, xz, yy, yz, zz as six free numbers.
    """
    s = np.asarray(scales, np.float64)
    q = np.asarray(rotations, np.float64)
    xx, xy, xz, yy, yz, zz = np.asarray(by_covariance, np.float64).T
    # Component by component: numpy multiplies many small matrices one by one.
    full = ((2 * xx, xy, xz), (xy, 2 * yy, yz), (xz, yz, 2 * zz))  # 2 G
    factor = matrices(q).transpose(1, 2, 0) * s.T  # M [3, 3, m]
    by_factor = np.stack(
        [sum(g * row for g, row in zip(line, factor, strict=True)) for line in full]
    )
    by_scale = (by_factor * factor).sum(axis=0).T
    by_quaternion = _by_quaternion(q, by_factor * s.T)
    # A quaternion is normalised before use: what is along it changes nothing.
    along = np.einsum("mi,mi->m", by_quaternion, q)
    return by_scale, by_quaternion - along[:, None] * q


def _by_quaternion(q: Doubles, d: Doubles) -> Doubles:
    """By w, x, y, z [m, 4], of the gradient d [3, 3, m] by the rotation matrix."""
    w, x, y, z = q.T
    (d00, d01, d02), (d10, d11, d12), (d20, d21, d22) = d
    return 2 * np.stack(
        [
            z * (d10 - d01) + y * (d02 - d20) + x * (d21 - d12),
            y * (d01 + d10) + z * (d02 + d20) + w * (d21 - d12) - 2 * x * (d11 + d22),
            x * (d01 + d10) + z * (d12 + d21) + w * (d02 - d20) - 2 * y * (d00 + d22),
            x * (d02 + d20) + y * (d12 + d21) + w * (d10 - d01) - 2 * z * (d00 + d11),
        ],
        axis=-1,
    )
