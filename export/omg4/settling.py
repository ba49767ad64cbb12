"""What stands still for the whole scene is said to: its time then needs no training and no bytes.

A trained splat of a background has a velocity and a time that are next to nothing, but never
nothing, and each costs as much as one that matters. So

    lasting     weight over exp(-1 / (2 LASTING^2)) from start to end: t_center becomes the middle
                of the scene, the mean is moved there along the velocity, t_sigma becomes LASTING
                half scenes
    still       lasting, and the drift in half a scene is less than half of the splat's middle
                standard deviation: the velocity becomes 0

Training leaves both as they are (refinement.py), and entropy coding finds one number again and
again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.model import SplatModel, SplatMotion

LASTING = 8.0  # a t_sigma, over the time to the scene's farther end: 0.992 of the weight is left
STILL = 0.5  # of the middle standard deviation
ALMOST = 0.999  # of LASTING: what float32 makes of it


@dataclass(frozen=True)
class Settled:
    """Which splats [n] have no time of their own, and which of those have no velocity."""

    lasting: NDArray[np.bool_]
    still: NDArray[np.bool_]


def settled(model: SplatModel) -> Settled:
    """As `settle` leaves them: exactly in the middle, exactly without velocity."""
    motion = model.motion
    if motion is None:
        every = np.ones(model.count, np.bool_)
        return Settled(every, every)
    middle, _ = _middle(motion)
    lasting = is_lasting(motion) & (motion.t_centers == middle)
    return Settled(lasting, lasting & ~motion.velocities.any(axis=1))


def settle(model: SplatModel) -> SplatModel:
    """The model with what lasts in the middle of the scene; itself where it does not move."""
    motion = model.motion
    if motion is None or motion.end <= motion.start:
        return model
    middle, half = _middle(motion)
    lasting = is_lasting(motion)
    drift = np.linalg.norm(motion.velocities.astype(np.float64), axis=1) * half
    size = np.sort(model.scales.astype(np.float64), axis=1)[:, 1]
    still = lasting & (drift < STILL * size)
    away = np.where(lasting, middle - motion.t_centers.astype(np.float64), 0.0)
    means = model.means + (away[:, None] * motion.velocities).astype(np.float32)
    return replace(
        model,
        means=means,
        motion=replace(
            motion,
            velocities=np.where(still[:, None], np.float32(0), motion.velocities),
            t_centers=np.where(lasting, middle, motion.t_centers),
            t_sigmas=np.where(lasting, np.float32(LASTING * half), motion.t_sigmas),
        ),
    )


def is_lasting(motion: SplatMotion) -> NDArray[np.bool_]:
    """[n]: whether the weight hardly changes while the scene lasts."""
    centers = motion.t_centers.astype(np.float64)
    farthest = np.maximum(np.abs(centers - motion.start), np.abs(centers - motion.end))
    found: NDArray[np.bool_] = motion.t_sigmas >= ALMOST * LASTING * farthest
    return found


def _middle(motion: SplatMotion) -> tuple[np.float32, float]:
    """(the time, the seconds from there to an end)."""
    return np.float32((motion.start + motion.end) / 2), (motion.end - motion.start) / 2
