"""A model as the rasteriser takes it: arrays by component, in the order in which they are drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import UsageError
from penstock.loaders.splats.covariance import covariances
from penstock.loaders.splats.harmonics import C0
from penstock.loaders.splats.model import SplatModel
from penstock.runtime.splats.ordering import MOST_RUNGS, drawing_order

Floats = NDArray[np.float32]

BLOCK = 1 << 11  # splats at a time, so that temporary arrays stay small
BLOCK_BYTES = BLOCK * 1536  # at most, of the temporary arrays
ORDER_BYTES = 120  # of a splat, what `drawing_order` has at once
MOST_COLOUR = 1e6  # splat_colour.h's kMostColour; white is 1
COLOUR_BYTES = 14  # of a splat whose colours follow the camera, see splat_colour.h


class Scene:
    """What is drawn of a model. It shares no memory with it.

    Attributes:
        count: splats.
        dynamic: whether time matters; start: seconds, 0 where it does not.
        means: [3, n], in the order of drawing.
        native: for `_native.SplatRenderer`.
    """

    def __init__(self, model: SplatModel, *, in_order: bool = False) -> None:
        """
        Args:
            model: as `check_model` lets it pass.
            in_order: whether splats that are near each other follow each other already.
        """
        n, k, motion = model.count, int(model.sh.shape[1]), model.motion
        self.count = n
        self.dynamic = motion is not None
        self.start = 0.0 if motion is None else motion.start
        order, self._ladder = drawing_order(model, in_order=in_order)
        mean, covariance = np.empty((3, n), np.float32), np.empty((6, n), np.float32)
        log_opacity = np.empty(n, np.float32)
        colours = np.empty((k, 3, n), np.float32)
        for begin in range(0, n, BLOCK):
            part, of = slice(begin, begin + BLOCK), order[begin : begin + BLOCK]
            mean[:, part] = model.means[of].T
            covariance[:, part] = covariances(model.scales[of], model.rotations[of]).T
            with np.errstate(divide="ignore"):  # opacity 0: minus infinity, which is not drawn
                log_opacity[part] = np.log(model.opacities[of].astype(np.float64))
            colours[:, :, part] = model.sh[of].transpose(1, 2, 0)
        self.means = mean
        self._arrays: list[Floats] = [mean, covariance, log_opacity, colours]
        velocity: Floats | None = None
        t_center: Floats | None = None
        t_sigma: Floats | None = None
        if motion is not None:
            velocity = np.ascontiguousarray(motion.velocities[order].T)
            t_center, t_sigma = motion.t_centers[order], motion.t_sigmas[order]
            self._arrays += [velocity, t_center, t_sigma]
        if k == 1:  # the same from everywhere
            np.clip(0.5 + np.float32(C0) * colours, 0, MOST_COLOUR, out=colours)
        self.native = _native.SplatScene(
            mean=mean,
            covariance=covariance,
            log_opacity=log_opacity,
            colour=colours[0] if k == 1 else None,
            sh=colours if k > 1 else None,
            velocity=velocity,
            t_center=t_center,
            t_sigma=t_sigma,
        )

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        ladder = self._ladder
        return (
            sum(array.nbytes for array in self._arrays)
            + self.native.bytes
            + (0 if ladder is None else sum(begins.nbytes for begins in ladder.begins))
        )

    def ranges(self, time: float) -> NDArray[np.int64]:
        """Ranges of splats [m, 2] with all that are active at a time; all of a static scene.

        Raises:
            UsageError: the time is not finite.
        """
        if not np.isfinite(time):
            raise UsageError(f"the time is {time}; expected a finite number of seconds")
        if self._ladder is None:
            return np.array([[0, self.count]], np.int64)
        return self._ladder.ranges(time)


def scene_bytes(count: int, coefficients: int, dynamic: bool) -> int:
    """Bytes that the scene of a model takes, not less than `Scene.nbytes`.

    Args:
        coefficients: of spherical harmonics, 1, 4, 9 or 16.
    """
    each = 4 * (3 + 6 + 1 + 3 * coefficients) + (20 if dynamic else 0)
    if coefficients > 1:
        each += COLOUR_BYTES
    return count * each + (8 << MOST_RUNGS) + 4096


def making_bytes(count: int) -> int:
    """Bytes that making a scene takes for a while, beside the model and the scene itself."""
    return count * ORDER_BYTES + BLOCK_BYTES
