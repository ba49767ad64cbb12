"""`penstock splat render`: pictures and films of a scene."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, say, size
from penstock.cli.option_groups import grouped
from penstock.cli.options import examples
from penstock.cli.progress import reading, stages
from penstock.cli.splat_options import (
    Drawing,
    File,
    Fps,
    Memory,
    Out,
    Seconds,
    Viewing,
    check_free,
    scene_rate,
)
from penstock.cli.splat_timings import Timings
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.runtime.splats.stage import Stage

EXAMPLES = examples(
    "penstock splat render scene.ply picture.png",
    "penstock splat render scene.psplat turn.webp --orbit --frames 90",
    "penstock splat render scene.psplat film.mp4 --memory 64MiB",
    "penstock splat render scene.psplat still.png --time 1.5 --azimuth 40 --width 1280",
    "penstock splat render scene.ply view.png --cameras transforms.json --camera 3 --json",
)
TURN_FRAMES = 120  # of a turn around a scene that stands still
MOST_FRAMES = 100_000


@dataclass(frozen=True)
class Film:
    """Which moments the frames show.

    Attributes:
        times: seconds of the scene, one a frame.
        fps: frames a second, as they are shown.
        turn: degrees that the camera goes around over all of them.
    """

    times: tuple[float, ...]
    fps: float
    turn: float


@grouped
def render(
    file: File,
    out: Out,
    *,
    orbit: Annotated[
        bool, typer.Option("--orbit", help="Go around the scene once, over all frames.")
    ] = False,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_FRAMES,
            metavar="N",
            help="Without it: one, or as many as the scene has; of a turn around one that stands "
            f"still {TURN_FRAMES}.",
        ),
    ] = None,
    fps: Fps = None,
    time: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="This moment of the scene, in every frame."),
    ] = None,
    quality: Annotated[
        int,
        typer.Option(min=0, max=100, metavar="N", help="Of WebP; 100 loses nothing."),
    ] = 85,
    viewing: Viewing,
    drawing: Drawing,
    memory: Memory = None,
    seconds: Seconds = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw a scene on the CPU, as a picture or a film.

    FILE is of any format that `penstock splat info` knows. OUT's ending says what is written: .png
    and .webp are one picture, or an animation where --orbit or --frames asks for it; .apng and .mp4
    are animations, .mp4 where ffmpeg is installed. A scene that moves plays from its start and
    begins again at its end, one picture is of its start; --time holds it still. WebP needs pip
    install 'penstock[splats]'. Times of drawing are said at the end.
    """
    from penstock.export.report import Progress
    from penstock.loaders.partial_file import check_writable
    from penstock.runtime.splats.images import (
        MOVING,
        check_name,
        open_pictures,
        pixel_bytes,
        to_pixels,
    )
    from penstock.runtime.splats.stage import open_stage

    check_free(out, overwrite)
    check_name(out)  # before a file is opened, which may take long
    check_writable(out)
    begin = perf_counter()
    picture, beside = viewing.picture(), pixel_bytes(out, quality)
    with reading(wanted=not as_json):
        stage = open_stage(
            file,
            memory=memory,
            picture=picture,
            pixel_bytes=beside,
            seconds=seconds,
            **drawing.arguments(),
        )
    with stage:
        if time is None and frames is None and not orbit and out.suffix.lower() not in MOVING:
            time = viewing.moment()  # of a photo of the same camera
        film = plan_film(stage, out, orbit=orbit, frames=frames, fps=fps, time=time)
        cameras = viewing.over(stage, len(film.times), film.turn)
        shape = {"width": cameras[0].width, "height": cameras[0].height}
        count = len(film.times)
        opened = perf_counter()
        timings = Timings()
        with (
            stages(wanted=not as_json and count > 1) as show,
            open_pictures(out, frames=count, fps=film.fps, quality=quality, **shape) as writer,
        ):
            for number, (camera, at) in enumerate(zip(cameras, film.times, strict=True)):
                frame = stage.render(camera, at)
                drawn = perf_counter()
                writer.add(to_pixels(frame.image))
                write_ms = 1000 * (perf_counter() - drawn)
                timings.add(frame.times, stage.bytes, write_ms)
                if show is not None:
                    show(Progress("frames", number + 1, count, "frames"))
        ended = perf_counter()
        splats, budget = stage.count, stage.memory
    nbytes = out.stat().st_size
    if out.suffix.lower() == ".mp4":  # whose sides are even: see VideoWriter
        shape = {name: side + side % 2 for name, side in shape.items()}
    if as_json:
        emit_json(
            {
                "file": file,
                "out": out,
                "bytes": nbytes,
                **shape,
                "fps": film.fps,
                "start": film.times[0],
                "splats": splats,
                "memory": budget,
                "open_seconds": opened - begin,
                "seconds": ended - begin,
                **timings.to_dict(),
            }
        )
        return
    what = "1 picture" if count == 1 else f"{count} frames"
    say(f"Wrote {out}: {what} of {shape['width']} x {shape['height']}, {size(nbytes)}.")
    say(f"{timings.line()}; opened in {opened - begin:.2f} s.")


def plan_film(
    stage: Stage,
    out: Path,
    *,
    orbit: bool,
    frames: int | None,
    fps: float | None,
    time: float | None,
) -> Film:
    """How many frames, and the moment that each shows.

    Raises:
        UsageError: a film of what neither moves nor is gone around, or a moment that is none.
    """
    from penstock.runtime.splats.images import MOVING

    if time is not None and not math.isfinite(time):
        raise UsageError(f"--time {time}: expected seconds")
    span = stage.end - stage.start
    plays = stage.dynamic and span > 0 and time is None
    rate = fps or scene_rate(stage)
    if time is not None and stage.dynamic:
        frame = 1 / scene_rate(stage)
        if not stage.start - frame <= time <= stage.end + frame:
            raise UsageError(
                f"--time {time:g}: the scene lasts from {stage.start:g} to {stage.end:g} s"
            )
    if frames is None:
        if out.suffix.lower() in MOVING and not plays and not orbit:
            raise UsageError(
                f"{out} would be a film in which nothing moves; give --orbit or --frames, or write "
                ".png or .webp"
            )
        if orbit or out.suffix.lower() in MOVING:
            frames = max(1, round(span * rate)) if plays else TURN_FRAMES
        else:
            frames = 1
        if frames > MOST_FRAMES:
            raise UsageError(
                f"{span:g} s at {rate:g} frames a second are {frames} frames; give --frames, at "
                f"most {MOST_FRAMES}, or a smaller --fps"
            )
    if plays:
        times = tuple(stage.start + (n / rate) % span for n in range(frames))
    else:
        times = (stage.start if time is None else time,) * frames
    return Film(times, rate, 360.0 if orbit else 0.0)
