"""Options that the splat commands share: the camera, the background, how to draw."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options
from penstock.cli.console import say
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.runtime.splats.camera import Camera, View
    from penstock.runtime.splats.stage import Stage

WIDTH, HEIGHT = 640, 480
FOV, ELEVATION = 50.0, 15.0  # degrees
MOST_SIDE = 16384  # pixels, of the rasteriser
COLOURS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "grey": (0.5, 0.5, 0.5)}

LEAST_FPS, MOST_FPS = 1.0, 1000.0

File = Annotated[Path, typer.Argument(metavar="FILE", hidden=True)]
Out = Annotated[Path, typer.Argument(metavar="OUT", hidden=True)]
Fps = Annotated[
    float | None,
    typer.Option(
        min=LEAST_FPS,
        max=MOST_FPS,
        metavar="X",
        help="Frames a second. Without it: the scene's.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory budget of a .psplat file: 64MiB, 1GiB, or 25% of its splats when decoded. "
        "Without it: as much as they take.",
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Length of a scene whose file does not say it: Spacetime Gaussians (without it: 1), "
        "rotor splats (from the file's start, or 0; without it: as far as they reach).",
    ),
]
Background = Annotated[
    str,
    typer.Option(metavar="COLOUR", help="black, white, grey, or as #e0e0e0."),
]
Footprint = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="exact, or omg4-sentinel: as the official OMG4 checkpoints were trained, whose splats "
        "are too thin in any other.",
    ),
]


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse to write over a file unless asked to; a folder is refused when it is written.

    Raises:
        UsageError: it is there.
    """
    if out.exists() and not overwrite and not out.is_dir():
        raise UsageError(f"{out} is there already; give another name, or --overwrite")


def say_lost(file: Path, lost: Sequence[tuple[str, str]]) -> None:
    """Say what reading a scene left out or changed: `SplatSummary.lost`."""
    if lost:
        say(f"Read otherwise than {file} has it: {'; '.join(map(' '.join, lost))}.")


def scene_rate(stage: Stage) -> float:
    """Frames a second that the scene has, within what --fps takes."""
    return min(max(stage.fps, LEAST_FPS), MOST_FPS)


@dataclass(frozen=True)
class Viewing:
    """From where to look, and how large the picture is."""

    width: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_SIDE,
            metavar="PIXELS",
            help=f"Of the picture. Without it: {WIDTH}, or as the file of cameras says.",
        ),
    ] = None
    height: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_SIDE,
            metavar="PIXELS",
            help=f"Without it: {HEIGHT}, or in the shape of the file of cameras.",
        ),
    ] = None
    fov: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            max=170.0,
            metavar="DEGREES",
            help=f"Horizontal field of view. Without it: {FOV:g}.",
        ),
    ] = None
    azimuth: Annotated[
        float | None,
        typer.Option(
            metavar="DEGREES",
            help="Where the camera stands around the model. Without it: 0, in front.",
        ),
    ] = None
    elevation: Annotated[
        float | None,
        typer.Option(
            min=-89.0,
            max=89.0,
            metavar="DEGREES",
            help=f"How far above it. Without it: {ELEVATION:g}.",
        ),
    ] = None
    distance: Annotated[
        float | None,
        typer.Option(
            min=1e-6, metavar="X", help="From its middle, in its units. Without it: it fits."
        ),
    ] = None
    cameras: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Cameras of a transforms.json, instead of the four options above."
        ),
    ] = None
    camera: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Which camera of that file, from 0; a picture is of its 'time', too. Without it: "
            "the first.",
        ),
    ] = None

    def __post_init__(self) -> None:
        for name in ("azimuth", "elevation", "fov", "distance"):
            value = getattr(self, name)
            if value is None:
                continue
            if not math.isfinite(value):  # no limit refuses NaN
                raise typer.BadParameter(f"--{name} must be a finite number")
            if self.cameras is not None:
                raise typer.BadParameter(
                    f"--{name} places a camera, and --cameras FILE has its own; choose one"
                )
        if self.cameras is None and self.camera is not None:
            raise typer.BadParameter("--camera is a camera of --cameras FILE; give that, too")

    def picture(self) -> tuple[int, int]:
        """Width and height. Raises as `over`."""
        if self.cameras is not None:
            camera = self._of_file.camera
            return camera.width, camera.height
        return self.width or WIDTH, self.height or HEIGHT

    def moment(self) -> float | None:
        """Seconds that the camera of a file is of; None where nothing says so. Raises as `over`."""
        return None if self.cameras is None else self._of_file.time

    def over(self, stage: Stage, frames: int, turn_degrees: float) -> Sequence[Camera]:
        """A camera for each frame.

        Raises:
            UsageError: a turn around a camera of a file, or a camera that is not there.
            FormatError, StorageError: the file of cameras cannot be read.
        """
        if self.cameras is not None:
            if turn_degrees:
                raise UsageError("choose --orbit or --cameras, not both")
            return [self._of_file.camera] * frames
        width, height = self.picture()
        return stage.orbit(
            frames,
            width=width,
            height=height,
            fov_degrees=FOV if self.fov is None else self.fov,
            azimuth_degrees=self.azimuth or 0.0,
            elevation_degrees=ELEVATION if self.elevation is None else self.elevation,
            distance=self.distance,
            turn_degrees=turn_degrees,
        )

    @cached_property
    def _of_file(self) -> View:
        from penstock.runtime.splats.camera import from_transforms

        path = self.cameras
        assert path is not None
        found = from_transforms(path)
        number = self.camera or 0
        if number >= len(found):
            raise UsageError(
                f"--camera {number}: the last of {path} is {len(found) - 1}; they count from 0"
            )
        camera = found[number].camera
        width = self.width or camera.width
        height = self.height or max(1, round(camera.height * width / camera.width))
        if max(width, height) > MOST_SIDE:
            raise UsageError(
                f"{path}: camera {number} has {width} x {height} pixels; pictures have at "
                f"most {MOST_SIDE} each way: give a --width"
            )
        across, down = width / camera.width, height / camera.height
        scaled = replace(
            camera,
            fx=camera.fx * across,
            cx=camera.cx * across,
            fy=camera.fy * down,
            cy=camera.cy * down,
            width=width,
            height=height,
        )
        return replace(found[number], camera=scaled)


@dataclass(frozen=True)
class Drawing:
    """How to draw, in the names of SplatRenderer."""

    background: Background = "black"
    footprint: Footprint = "exact"
    threads: options.Threads = None

    def __post_init__(self) -> None:
        check_footprint(self.footprint)

    def arguments(self) -> dict[str, Any]:
        """For `open_stage`.

        Raises:
            UsageError: the background is no colour.
        """
        return {
            "background": parse_colour(self.background),
            "footprint": self.footprint,
            "threads": self.threads,
        }


def check_footprint(name: str) -> None:
    """Refuse a --footprint that is none, before a file is opened.

    Raises:
        BadParameter: as it says.
    """
    from penstock.loaders.splats.model import FOOTPRINTS

    if name not in FOOTPRINTS:
        raise typer.BadParameter(f"--footprint {name}: expected {' or '.join(FOOTPRINTS)}")


def parse_colour(text: str) -> tuple[float, float, float]:
    """'#ff8000' or a name as red, green and blue in 0..1.

    Raises:
        UsageError: it is neither.
    """
    if text.lower() in COLOURS:
        return COLOURS[text.lower()]
    match = re.fullmatch(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text)
    if match is None:
        raise UsageError(f"'{text}' is not a colour; write {', '.join(COLOURS)}, or as #e0e0e0")
    red, green, blue = (int(part, 16) / 255 for part in match.groups())
    return red, green, blue
