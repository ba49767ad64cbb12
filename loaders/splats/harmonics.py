"""The real spherical harmonics of splats' colours, with INRIA's signs, to degree 3.

A colour channel towards the unit direction d is 0.5 + sum_k basis(d)[k] sh[k], not under 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

C0 = 0.28209479177387814
"""The constant basis function: 0.5 / sqrt(pi)."""


def basis(directions: NDArray[np.floating], degree: int = 3) -> Doubles:
    """The basis functions [m, (degree + 1)^2] at unit directions [m, 3].

    Source: the polynomials of graphdeco-inria/gaussian-splatting's paper (Kerbl et al. 2023),
    which are those of PlenOctrees; the normalisations are written out as square roots.
    """
    x, y, z = np.asarray(directions, np.float64).T
    xx, yy, zz = x * x, y * y, z * z
    one = math.sqrt(3 / (4 * math.pi))
    two, three = math.sqrt(15 / (4 * math.pi)), math.sqrt(35 / (32 * math.pi))
    columns = [
        np.full_like(x, C0),
        -one * y,
        one * z,
        -one * x,
        two * x * y,
        -two * y * z,
        math.sqrt(5 / (16 * math.pi)) * (2 * zz - xx - yy),
        -two * x * z,
        two / 2 * (xx - yy),
        -three * y * (3 * xx - yy),
        math.sqrt(105 / (4 * math.pi)) * x * y * z,
        -math.sqrt(21 / (32 * math.pi)) * y * (4 * zz - xx - yy),
        math.sqrt(7 / (16 * math.pi)) * z * (2 * zz - 3 * xx - 3 * yy),
        -math.sqrt(21 / (32 * math.pi)) * x * (4 * zz - xx - yy),
        math.sqrt(105 / (16 * math.pi)) * z * (xx - yy),
        -three * x * (xx - 3 * yy),
    ]
    return np.stack(columns[: (degree + 1) ** 2]).T


def turned_coefficients(axes: NDArray[np.floating]) -> Doubles:
    """The matrix M [16, 16] with which colours follow their scene: sh_new = M sh.

    The scene's points p become axes p, so what was seen along d is seen along axes d:
    basis(axes d) M sh = basis(d) sh for every d. Solved on directions spread over the sphere;
    each degree is a space that turns into itself, so the solution is exact.

    Args:
        axes: [3, 3], orthogonal; a reflection is as good as a rotation.
    """
    height = np.linspace(-0.98, 0.98, 64)  # a golden spiral
    angle = np.arange(64) * (math.pi * (3 - math.sqrt(5)))
    radius = np.sqrt(1 - height**2)
    d = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1)
    solved = np.linalg.lstsq(basis(d @ np.asarray(axes, np.float64).T), basis(d), rcond=None)[0]
    nearest = np.round(solved)
    exact: Doubles = np.where(np.abs(solved - nearest) < 1e-9, nearest, solved)
    return exact
