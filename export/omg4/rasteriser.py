"""What draws pictures that can be learned from, behind one interface.

    NativeRasteriser    the player's own, with its analytic backward pass; any number of threads
    TorchRasteriser     torch_rasteriser.py, for a GPU; the same rules, tile by tile

A picture is of splats with one colour each; harmonics are drawing.py's. The background is black.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import UsageError
from penstock.export.omg4.settings import CompressionSettings
from penstock.export.omg4.training_loops import TrainingLoops
from penstock.loaders.cores import compute_threads
from penstock.loaders.splats.model import LOW_PASS, WEIGHT_CUTOFF

if TYPE_CHECKING:
    from penstock.runtime.splats.camera import Camera

Floats = NDArray[np.float32]

MOST_PAIRS = 1 << 24  # of a splat and a tile in memory at a time
LEAST_OPACITY = 1e-30  # has a logarithm


@dataclass(frozen=True)
class Scene:
    """n splats, component by component, as `loaders/splats/model.py` has their units.

    Attributes:
        mean: [3, n]. covariance: [6, n], xx xy xz yy yz zz.
        opacity: [n]. colour: [3, n], 0 or more.
        velocity: [3, n]; t_center, t_sigma: [n]; all None of a static scene.
    """

    mean: Floats
    covariance: Floats
    opacity: Floats
    colour: Floats
    velocity: Floats | None
    t_center: Floats | None
    t_sigma: Floats | None

    @property
    def count(self) -> int:
        return len(self.opacity)


@dataclass(frozen=True)
class Gradients:
    """Of a loss by a scene's arrays, in their shapes; 0 for splats that were not drawn.

    Attributes:
        covariance: by six free numbers: an off-diagonal one stands in two places of the matrix.
        weight: [n], sum over pixels of alpha times what was left in front of the splat.
        screen: [n], length of the gradient by the middle on the screen, a pixel.
    """

    mean: Floats
    covariance: Floats
    opacity: Floats
    colour: Floats
    velocity: Floats | None
    t_center: Floats | None
    t_sigma: Floats | None
    weight: Floats
    screen: Floats


class NativeRasteriser:
    """On the processor; the same pictures and gradients for any number of threads."""

    def __init__(self, threads: int | None = None, footprint: str = "exact") -> None:
        """
        Args:
            threads: None: one for each core.
            footprint: as SplatRenderer has it.
        """
        self.loops = TrainingLoops(threads)
        self._sentinel = footprint == "omg4-sentinel"
        self._renderer = _native.SplatRenderer(compute_threads(threads))
        self._last: tuple[Scene, _native.SplatScene, Camera, _native.SplatOptions] | None = None

    def draw(self, scene: Scene, camera: Camera, time: float) -> Floats:
        """The picture [h, w, 3]."""
        held = _native.SplatScene(
            mean=scene.mean,
            covariance=scene.covariance,
            log_opacity=np.log(np.maximum(scene.opacity, np.float32(LEAST_OPACITY))),
            colour=scene.colour,
            sh=None,
            velocity=scene.velocity,
            t_center=scene.t_center,
            t_sigma=scene.t_sigma,
        )
        options = _native.SplatOptions(
            time=time,
            background=(0.0, 0.0, 0.0),
            low_pass=LOW_PASS,
            least_weight=WEIGHT_CUTOFF,
            omg4_sentinel=self._sentinel,
            colour_tolerance=0.0,
            most_pairs=MOST_PAIRS,
        )
        image = np.zeros((camera.height, camera.width, 3), np.float32)
        ranges = np.array([[0, scene.count]], np.int64)
        self._renderer.render([held], [ranges], camera.native(), options, image, None)
        self._last = scene, held, camera, options
        return image

    def backward(self, by_image: Floats) -> Gradients:
        """By the arrays of the last picture.

        Raises:
            UsageError: nothing was drawn, or the gradient is not of the picture's shape.
        """
        if self._last is None:
            raise UsageError("there is no picture to take gradients of; call draw first")
        scene, held, camera, options = self._last
        if by_image.shape != (camera.height, camera.width, 3):
            raise UsageError(
                f"the gradient is {by_image.shape}; expected {(camera.height, camera.width, 3)}"
            )
        moves = scene.t_center is not None
        rows = np.zeros((21 if moves else 16, scene.count), np.float32)
        towards = np.ascontiguousarray(by_image, np.float32)
        self._renderer.backward(held, camera.native(), options, towards, rows)
        return Gradients(
            mean=rows[4:7],
            covariance=rows[7:13],
            opacity=rows[3],
            colour=rows[0:3],
            velocity=rows[16:19] if moves else None,
            t_center=rows[19] if moves else None,
            t_sigma=rows[20] if moves else None,
            weight=rows[15],
            screen=np.hypot(rows[13], rows[14]),
        )


class Rasteriser(Protocol):
    """Draws a scene, and says how the last picture changes with it.

    Attributes:
        loops: what else training does with splats.
    """

    loops: TrainingLoops

    def draw(self, scene: Scene, camera: Camera, time: float) -> Floats:
        """The picture [h, w, 3] at a time in seconds."""

    def backward(self, by_image: Floats) -> Gradients:
        """Of a loss with this gradient [h, w, 3] by the last picture."""


def rasteriser_for(settings: CompressionSettings) -> Rasteriser:
    """The rasteriser of the device that the settings name.

    Raises:
        BackendMissingError: "cuda" without torch or a GPU.
    """
    if settings.device != "cpu":
        from penstock.export.omg4.torch_rasteriser import TorchRasteriser, has_gpu

        if settings.device == "cuda" or has_gpu():
            return TorchRasteriser("cuda", footprint=settings.footprint, threads=settings.threads)
    return NativeRasteriser(settings.threads, settings.footprint)
