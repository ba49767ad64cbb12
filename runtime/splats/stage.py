"""Any file of splats, ready to be drawn: .psplat files by segments under a budget, others whole.

with open_stage(Path("flame.psplat"), memory="64MiB") as stage:
    camera = stage.orbit(1, width=640, height=480)[0]
    frame = stage.render(camera, time=stage.start)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.loaders.splats.formats import check_seconds, open_splats
from penstock.loaders.splats.model import SplatModel
from penstock.loaders.splats.splat_format import SplatFormat, splat_format
from penstock.runtime.splats.camera import Camera, extent_of, orbit_around
from penstock.runtime.splats.player import PLANNED, SplatPlayer
from penstock.runtime.splats.renderer import Frame, SplatRenderer

STILL_FPS = 30.0  # of files that name no rate


class Stage:
    """What can be drawn, of a file or of a model in memory.

    Attributes:
        count: splats.
        dynamic: whether time matters; start, end: seconds, both 0 where it does not.
        fps: the file's frames a second, `STILL_FPS` where it names none.
        memory: bytes that are kept to; None: the whole model is in memory.
    """

    def __init__(
        self,
        source: SplatModel | Path,
        *,
        memory: str | int | None = None,
        picture: tuple[int, int] = PLANNED,
        pixel_bytes: int = 0,
        **drawing: Any,
    ) -> None:
        """
        Args:
            source: a model, or the path of a .psplat file.
            memory, picture, pixel_bytes: as SplatPlayer takes them, of a file.
            drawing: threads, footprint, background, colour_tolerance, as SplatRenderer takes them.
        """
        self._player: SplatPlayer | None = None
        if isinstance(source, SplatModel):
            motion = source.motion
            self._renderer = SplatRenderer(source, **drawing)
            self.count, self.dynamic = source.count, source.dynamic
            self.memory: int | None = None
            self.start, self.end = (0.0, 0.0) if motion is None else (motion.start, motion.end)
            self.fps = STILL_FPS if motion is None or motion.fps is None else motion.fps
        else:
            player = SplatPlayer(
                source, memory=memory, picture=picture, pixel_bytes=pixel_bytes, **drawing
            )
            self._player = player
            self.count, self.dynamic = player.info.count, player.info.dynamic
            self.start, self.end = player.start, player.end
            self.fps = player.fps or STILL_FPS
            self.memory = player.budget if memory is not None else None

    def render(self, camera: Camera, time: float) -> Frame:
        """One picture. A static scene is the same at every time.

        Raises:
            StorageError, FormatError: a segment cannot be read, or is damaged.
        """
        if self._player is not None:
            return self._player.render(camera, time)
        return self._renderer.render(camera, time if self.dynamic else None)

    @property
    def extent(self) -> tuple[NDArray[np.float64], float]:
        """The middle [3] of the splats, and the radius that holds most of them."""
        if self._player is not None:
            return self._player.extent
        return extent_of(self._renderer.scenes[0].means.T)

    def orbit(self, frames: int, **options: Any) -> Sequence[Camera]:
        """Cameras around what there is; the options of `camera.orbit_around`."""
        centre, radius = self.extent
        return orbit_around(centre, radius, frames, **options)

    @property
    def bytes(self) -> int:
        """Bytes that the splats, and the room for drawing them, take in memory now."""
        if self._player is not None:
            return self._player.bytes
        return self._renderer.nbytes

    def close(self) -> None:
        """Close the file, where one is open."""
        if self._player is not None:
            self._player.close()

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_stage(
    path: Path,
    *,
    memory: str | int | None = None,
    picture: tuple[int, int] = PLANNED,
    pixel_bytes: int = 0,
    seconds: float | None = None,
    **drawing: Any,
) -> Stage:
    """A file of any format that `open_splats` reads.

    Args:
        memory: a budget, as '64MiB'; .psplat files keep it.
        picture: width and height that will be drawn, which the budget must allow.
        pixel_bytes: bytes a pixel for what is done with the pictures, as `images.pixel_bytes`.
        seconds: that the scene takes, as `open_splats` takes it.
        drawing: threads, footprint, background, colour_tolerance, as SplatRenderer takes them.

    Raises:
        UsageError: a budget for a file that is decoded whole, or seconds for one that has them.
        BudgetError: the budget is too small; it names the least that works.
        FormatError, StorageError, BackendMissingError: as `open_splats`.
    """
    found = splat_format(path)
    if seconds is not None:
        check_seconds(path, found, seconds)
    if found is SplatFormat.PSPLAT:
        return Stage(path, memory=memory, picture=picture, pixel_bytes=pixel_bytes, **drawing)
    if memory is not None:
        raise UsageError(
            f"{path}: only .psplat files are played under a memory budget; make one with: "
            "penstock splat compress FILE OUT.psplat"
        )
    return Stage(open_splats(path, seconds), **drawing)
