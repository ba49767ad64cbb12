"""A model as one camera sees it at one time, and how that picture changes with the model.

    colour = max(0, 0.5 + sum_k basis_k(direction) sh_k)         here
    picture = the rasteriser's, of splats with a colour each     rasteriser.py

The direction is that to the splat's mean at its own time, and what it adds to the mean's gradient
is left out: colours change little over the way that a mean goes in a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.rasteriser import Gradients, Rasteriser, Scene
from penstock.loaders.splats.model import SEEN_SIGMAS, Floats, SplatModel

if TYPE_CHECKING:
    from penstock.runtime.splats.camera import Camera


@dataclass(frozen=True)
class ModelGradients:
    """Of a loss by the splats that were active, in the model's units.

    Attributes:
        active: [m] indices of them, ascending; the other arrays are theirs.
        sh: [m, k, 3].
        opacities: [m]. means: [m, 3].
        covariances: [6, m], by xx, xy, xz, yy, yz, zz as six free numbers.
        velocities: [m, 3]. t_centers, t_sigmas: [m]. All three None of a static model.
        weights: [m], the sum over pixels of what share of each the splat has.
        screen: [m], length of the gradient by the mean's place on the screen, a pixel.
    """

    active: NDArray[np.intp]
    sh: Floats
    opacities: Floats
    means: Floats
    covariances: Floats
    velocities: Floats | None
    t_centers: Floats | None
    t_sigmas: Floats | None
    weights: Floats
    screen: Floats


class Drawing:
    """One picture of a model, kept until its gradients are wanted.

    Attributes:
        active: [m] indices of the splats that were given to the rasteriser.
        image: [h, w, 3].
    """

    def __init__(
        self,
        rasteriser: Rasteriser,
        model: SplatModel,
        camera: Camera,
        time: float | None,
    ) -> None:
        """
        Args:
            time: seconds; ignored by a static model.
        """
        self.active = active_at(model, time)
        part, loops, motion = self.active, rasteriser.loops, model.motion
        self._model, self._camera, self._rasteriser = model, camera, rasteriser
        self._scene = Scene(
            loops.columns(model.means, part),
            loops.covariances(model, part),
            np.ascontiguousarray(model.opacities[part]),
            loops.colours(model, camera, part),
            None if motion is None else loops.columns(motion.velocities, part),
            None if motion is None else np.ascontiguousarray(motion.t_centers[part]),
            None if motion is None else np.ascontiguousarray(motion.t_sigmas[part]),
        )
        self.image = rasteriser.draw(self._scene, camera, 0.0 if time is None else time)

    def gradients(self, by_image: Floats) -> ModelGradients:
        """Of a loss whose gradient by the picture is [h, w, 3]. Before the rasteriser draws
        another picture."""
        found: Gradients = self._rasteriser.backward(by_image)
        return ModelGradients(
            self.active,
            self._rasteriser.loops.harmonics_gradients(
                self._model, self._camera, self.active, self._scene.colour, found.colour
            ),
            found.opacity,
            np.ascontiguousarray(found.mean.T),
            found.covariance,
            None if found.velocity is None else np.ascontiguousarray(found.velocity.T),
            found.t_center,
            found.t_sigma,
            found.weight,
            found.screen,
        )


def draw_model(
    rasteriser: Rasteriser, model: SplatModel, camera: Camera, time: float | None
) -> Floats:
    """The picture [h, w, 3]."""
    return Drawing(rasteriser, model, camera, time).image


def active_at(model: SplatModel, time: float | None) -> NDArray[np.intp]:
    """Indices of the splats that are not too weak at this time, and perhaps of a few that are."""
    if model.motion is None or time is None:
        return np.arange(model.count)
    away = np.abs(model.motion.t_centers - np.float32(time))
    return np.flatnonzero(away <= 1.001 * SEEN_SIGMAS * model.motion.t_sigmas)
