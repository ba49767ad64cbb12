"""Gaussian pruning: drop what is low in space and low in time (OMG4, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.export.omg4.scores import Scores
from penstock.loaders.splats.model import SEEN_SIGMAS, SplatModel

LEAST_ALPHA = 1 / 255
"""What is never more opaque than this no renderer draws."""


def keep_high(scores: Scores, quantile: float) -> NDArray[np.intp]:
    """Indices of the splats that reach the quantile in space, or pass it in time, ascending.

    A static scene has no say in time: what is low in space is dropped.

    Raises:
        UsageError: a quantile outside 0 to 1.
    """
    if not 0 <= quantile <= 1:
        raise UsageError(f"the pruning quantile is {quantile}; expected 0 to 1")
    if not len(scores.space):
        return np.zeros(0, np.intp)
    kept = scores.space >= np.quantile(scores.space, quantile)
    if scores.time is not None:
        kept |= scores.time > np.quantile(scores.time, quantile)
    return np.flatnonzero(kept)


def keep_drawable(model: SplatModel) -> NDArray[np.intp]:
    """Indices of the splats that some camera can see at some time of the scene, ascending.

    The others are too transparent, or their time lies outside of the scene's. Nothing is lost.
    """
    kept = model.opacities >= np.float32(LEAST_ALPHA)
    motion = model.motion
    if motion is not None:
        reach = 1.001 * SEEN_SIGMAS * motion.t_sigmas.astype(np.float64)
        kept &= motion.t_centers + reach >= motion.start
        kept &= motion.t_centers - reach <= motion.end
    return np.flatnonzero(kept)
