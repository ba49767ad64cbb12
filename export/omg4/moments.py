"""A group of splats as one with the same mass, middle and spread, in space and time.

A splat that moves is a 4D Gaussian: with Stt = t_sigma^2 its covariance is

    Sxx = S + v v^T Stt      Sxt = v Stt      Stt

A mixture of Gaussians has the mean of their means and the covariance sum p (S_i + d_i d_i^T); cut
back into shape, velocity and t_sigma that is one splat again. Splats that follow each other along a
track become one that moves along it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.groups import Doubles, Groups
from penstock.loaders.splats.covariance import decompose
from penstock.loaders.splats.model import SplatModel, SplatMotion, select
from penstock.loaders.splats.quaternions import matrices

MOST_OPACITY = 0.999  # an opaque splat counts as absorbing this much, not everything


def masses(model: SplatModel) -> Doubles:
    """[n]: opacity times the largest area that a splat shows, times how long; for shares only."""
    mass: Doubles = model.opacities * _extents(model)
    return mass


def merge_moments(model: SplatModel, groups: Groups) -> SplatModel:
    """One splat for each group; colours are the mean by mass, too."""
    parts = select(model, groups.members)
    mass = np.maximum(masses(parts), 1e-30)
    share = mass / groups.spread(groups.sums(mass))  # [m], 1 in each group

    def mean(values: NDArray[np.floating]) -> Doubles:
        weights = share.reshape(-1, *[1] * (values.ndim - 1))
        return groups.sums(weights * values)

    middle = mean(parts.means)
    away = parts.means - groups.spread(middle)  # [m, 3]
    factor = matrices(parts.rotations) * parts.scales.astype(np.float64)[:, None, :]
    spread = factor @ factor.transpose(0, 2, 1) + away[:, :, None] * away[:, None, :]
    motion = None
    if parts.motion is None:
        shape = mean(spread)
    else:
        shape, motion = _with_time(parts.motion, spread, away, mean, groups)
    scales, rotations = decompose(shape)
    result = SplatModel(
        middle.astype(np.float32),
        scales,
        rotations,
        np.ones(groups.count, np.float32),
        mean(parts.sh).astype(np.float32),
        motion,
    )
    # What absorbs light stays the same: -ln(1 - opacity), times area and time. So twins in one
    # place become what both were together, and tiles of a surface one that is as opaque.
    depth = -np.log1p(-np.minimum(parts.opacities, MOST_OPACITY).astype(np.float64))
    depth = groups.sums(depth * _extents(parts)) / _extents(result)
    return replace(result, opacities=(-np.expm1(-depth)).astype(np.float32))


def _extents(model: SplatModel) -> Doubles:
    """[n]: the product of the two largest scales, and of t_sigma; over 0."""
    scales = np.sort(model.scales.astype(np.float64), axis=1)
    area: Doubles = np.maximum(scales[:, 1] * scales[:, 2], 1e-30)
    return area if model.motion is None else area * model.motion.t_sigmas


def _with_time(
    motion: SplatMotion,
    spread: Doubles,
    away: Doubles,
    mean: Callable[[NDArray[np.floating]], Doubles],
    groups: Groups,
) -> tuple[Doubles, SplatMotion]:
    """(covariances [g, 3, 3] at one time, the groups' motion).

    Args:
        spread: [m, 3, 3], S_i + d_i d_i^T. away: [m, 3], d_i. mean: by mass in each group.
    """
    velocity = motion.velocities.astype(np.float64)
    sigma = motion.t_sigmas.astype(np.float64)
    centre = mean(motion.t_centers)
    later = motion.t_centers - groups.spread(centre)  # [m]
    drift = velocity * sigma[:, None]
    along = mean(drift * sigma[:, None] + away * later[:, None])  # Sxt
    length = mean(sigma**2 + later**2)  # Stt
    both = mean(spread + drift[:, :, None] * drift[:, None, :])  # Sxx
    speed = along / length[:, None]
    shape = both - speed[:, :, None] * along[:, None, :]
    found = SplatMotion(
        speed.astype(np.float32),
        centre.astype(np.float32),
        np.sqrt(length).astype(np.float32),
        motion.start,
        motion.end,
        motion.fps,
    )
    return shape, found
