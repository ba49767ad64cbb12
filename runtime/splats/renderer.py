"""Pictures of splats, drawn on the CPU.

renderer = SplatRenderer(open_splats(Path("biker.spz")))
frame = renderer.render(look_at((0, 0, -3), (0, 0, 0), width=640, height=480))
print(frame.image.shape, frame.times.total_ms)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import UsageError
from penstock.loaders.cores import compute_threads
from penstock.loaders.splats.model import (
    FOOTPRINTS,
    LOW_PASS,
    WEIGHT_CUTOFF,
    SplatModel,
    check_model,
)
from penstock.runtime.splats.camera import Camera
from penstock.runtime.splats.scene import Scene

Image = NDArray[np.float32]

MOST_PAIRS = 1 << 24  # of a splat and a tile that are listed at a time: 64 MiB


@dataclass(frozen=True)
class RenderTimes:
    """What a frame took, and what was in it.

    Attributes:
        load_ms: reading and decoding, of a player.
        colour_ms, project_ms, sort_ms, bin_ms, blend_ms: the steps of drawing.
        coloured: splats whose spherical harmonics were evaluated.
        active: splats that were looked at. visible: those that reach a pixel.
        pairs: of a splat and a tile.
    """

    colour_ms: float
    project_ms: float
    sort_ms: float
    bin_ms: float
    blend_ms: float
    coloured: int
    active: int
    visible: int
    pairs: int
    load_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        return (
            self.load_ms
            + self.colour_ms
            + self.project_ms
            + self.sort_ms
            + self.bin_ms
            + self.blend_ms
        )

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"total_ms": self.total_ms}


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture.

    Attributes:
        image: [h, w, 3], as the model was trained; over 1 where splats are brighter than white.
        transmittance: [h, w], how much of the background shows; None where it was not asked for.
    """

    image: Image
    times: RenderTimes
    transmittance: Image | None = None


class SplatRenderer:
    """Draws a model. One thread at a time draws with it; others wait.

    The picture does not depend on the number of threads.

    Attributes:
        scenes: what is drawn; all of them together, sorted by depth.
        threads: that compute.
    """

    def __init__(
        self,
        model: SplatModel | Sequence[Scene],
        *,
        threads: int | None = None,
        footprint: str = "exact",
        background: Sequence[float] = (0.0, 0.0, 0.0),
        colour_tolerance: float = 0.0,
        low_pass: float = LOW_PASS,
        most_pairs: int = MOST_PAIRS,
    ) -> None:
        """
        Args:
            model: or scenes that are ready, none of them included.
            threads: None: one for each core.
            footprint: "exact", or "omg4-sentinel": as wide as in the training of OMG4's published
                checkpoints, whose images' field of view was -1 (docs/splats.md).
            background: red, green and blue.
            colour_tolerance: radians from which a splat may be seen elsewhere than where its
                spherical harmonics were last evaluated for; 0: evaluated whenever the camera moves.
            low_pass: pixels squared, added to footprints' variances.
            most_pairs: of a splat and a tile that are listed at a time; more are drawn in bands.

        Raises:
            UsageError: a value out of its range.
            FormatError: the model has numbers that no renderer can draw.
        """
        if footprint not in FOOTPRINTS:
            raise UsageError(
                f"the footprint is '{footprint}'; expected one of {', '.join(FOOTPRINTS)}"
            )
        if len(background) != 3 or not all(math.isfinite(value) for value in background):
            raise UsageError(f"the background is {background}; expected 3 finite numbers")
        limits = {"colour_tolerance": (colour_tolerance, 1.5), "low_pass": (low_pass, 1e6)}
        for name, (value, most) in limits.items():
            if not 0 <= value <= most:
                raise UsageError(f"{name} is {value}; expected 0 to {most:g}")
        if not 1 <= most_pairs <= 1 << 31:
            raise UsageError(f"most_pairs is {most_pairs}; expected 1 to {1 << 31}")
        self.threads = compute_threads(threads)
        self._options: dict[str, Any] = {
            "background": [float(value) for value in background],
            "low_pass": float(low_pass),
            "least_weight": WEIGHT_CUTOFF,
            "omg4_sentinel": footprint == "omg4-sentinel",
            "colour_tolerance": float(colour_tolerance),
            "most_pairs": int(most_pairs),
        }
        if isinstance(model, SplatModel):
            self.scenes = [Scene(check_model(model, "the model"))]
        else:
            self.scenes = list(model)
        self._native = _native.SplatRenderer(self.threads)

    def render(
        self, camera: Camera, time: float | None = None, *, transmittance: bool = False
    ) -> Frame:
        """One picture.

        Args:
            time: seconds; None: where the scene starts. A static scene is the same at every time.
            transmittance: whether the frame has it, too.

        Raises:
            UsageError: the time is not finite.
            MemoryError: there is no room for the picture.
        """
        image = np.empty((camera.height, camera.width, 3), np.float32)
        rest = np.empty((camera.height, camera.width), np.float32) if transmittance else None
        if time is None:
            time = min((scene.start for scene in self.scenes if scene.dynamic), default=0.0)
        times = self._native.render(
            [scene.native for scene in self.scenes],
            [scene.ranges(time) for scene in self.scenes],
            camera.native(),
            _native.SplatOptions(time=float(time), **self._options),
            image,
            rest,
        )
        return Frame(image, _times(times), rest)

    @property
    def nbytes(self) -> int:
        """Bytes of the scenes, and of the room that is kept from picture to picture."""
        return sum(scene.nbytes for scene in self.scenes) + self.room_bytes

    @property
    def room_bytes(self) -> int:
        """Bytes that are kept from picture to picture, besides the scenes."""
        return self._native.bytes


def _times(native: _native.SplatTimes) -> RenderTimes:
    return RenderTimes(
        colour_ms=native.colour_ms,
        project_ms=native.project_ms,
        sort_ms=native.sort_ms,
        bin_ms=native.bin_ms,
        blend_ms=native.blend_ms,
        coloured=native.coloured,
        active=native.active,
        visible=native.visible,
        pairs=native.pairs,
    )
