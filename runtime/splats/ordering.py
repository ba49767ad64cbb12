"""The order in which a scene's splats lie in memory: those of one time together, then near ones.

A moving splat is active for a while around its t_center: for the rest, its weight in time is so low
that it is not drawn. `TimeLadder` finds nearly only the active ones without looking at the others:

    rung 0   the splats that are active for over half of the scene: always looked at
    rung k   those that are active for 2^-k of it at most: it has 2^k steps, and a splat is
             on the step where it begins, so that it ends on that step or the next

At a time, each rung has two steps, one range of splats. So no more than some four times as many are
looked at as are active, and a scene of many short-lived splats costs what is seen of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.model import SEEN_SIGMAS, SplatModel
from penstock.quant.morton import morton_codes as interleaved

Indices = NDArray[np.int64]

MOST_RUNGS = 10  # the last has 512 steps
MORTON_BITS = 10  # of each axis


@dataclass(frozen=True)
class TimeLadder:
    """Where the splats of each rung and step begin, of a scene in `drawing_order`.

    Attributes:
        start: seconds, of the first step; length: seconds of all of a rung's steps.
        begins: of each rung [steps + 1], splats; a step ends where the next one begins.
    """

    start: float
    length: float
    begins: tuple[Indices, ...]

    def ranges(self, time: float) -> Indices:
        """Ranges of splats [m, 2], begin and end, in which all those are that are active."""
        found = []
        for begins in self.begins:
            steps = len(begins) - 1
            share = (time - self.start) / self.length if self.length > 0 else 0.0
            step = math.floor(min(max(share, 0.0), 1.0) * steps)
            found.append((begins[max(0, step - 1)], begins[min(step, steps - 1) + 1]))
        ranges = np.array(found, np.int64).reshape(-1, 2)
        return ranges[ranges[:, 0] < ranges[:, 1]]


def drawing_order(
    model: SplatModel, *, in_order: bool = False
) -> tuple[Indices, TimeLadder | None]:
    """(the splats in the order in which they are best drawn [n], where the times of a scene that
    moves are in it).

    Args:
        in_order: whether splats that are near each other follow each other already.
    """
    near: Indices = np.arange(model.count)
    if not in_order:
        near = np.argsort(morton_codes(model.means), kind="stable")
    motion = model.motion
    if motion is None or not model.count:
        return near, None
    centre = motion.t_centers.astype(np.float64)
    reach = motion.t_sigmas.astype(np.float64) * (SEEN_SIGMAS * (1 + 1e-5))  # float32 rounds
    begin, end = centre - reach, centre + reach
    start, length = _span(begin, end, motion.start, motion.end)

    # The rung: the last whose steps are as long as the splat is active.
    with np.errstate(divide="ignore"):
        rung = np.floor(np.log2(length / np.maximum(2 * reach, 1e-30)))
    rung = np.clip(rung, 0, MOST_RUNGS - 1).astype(np.int64)
    steps = np.left_shift(1, rung)
    share = (begin - start) / length if length > 0 else np.zeros_like(begin)
    step = np.clip(np.floor(share * steps), 0, steps - 1).astype(np.int64)
    place = steps - 1 + step  # rungs of 1, 2, 4, ... steps follow each other
    order = near[np.argsort(place[near], kind="stable")]
    counts = np.bincount(place, minlength=(1 << MOST_RUNGS) - 1)
    begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rungs = [begins[(1 << k) - 1 : (2 << k)] for k in range(MOST_RUNGS)]
    used = tuple(found for found in rungs if found[-1] > found[0])
    return order, TimeLadder(start, length, used)


def _span(
    begin: NDArray[np.float64], end: NDArray[np.float64], scene_start: float, scene_end: float
) -> tuple[float, float]:
    """(start, length) of what the rungs cover: all splats [n] that are shorter than the scene, but
    for those that are far outside of it."""
    whole = scene_end - scene_start
    short = end - begin < whole
    if not short.any():
        return scene_start, whole
    start = max(float(begin[short].min()), scene_start - whole)
    return start, max(min(float(end[short].max()), scene_end + whole) - start, 0.0)


def morton_codes(points: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Codes [n] that are near where points [n, 3] are, `MORTON_BITS` of each axis interleaved.

    The box is that of all but the outermost points, which lie on its sides.
    """
    if not len(points):
        return np.empty(0, np.uint32)
    low, high = np.quantile(points, [0.01, 0.99], axis=0)
    steps = (1 << MORTON_BITS) - 1
    size = np.where(high > low, high - low, 1.0)
    cells = np.clip((points - low) / size * steps, 0, steps).astype(np.uint32)
    return interleaved(cells).astype(np.uint32)
