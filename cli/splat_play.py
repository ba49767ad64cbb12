"""`penstock splat play`: a scene in time, in the terminal, and how well the machine keeps up."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, say
from penstock.cli.option_groups import grouped
from penstock.cli.options import examples
from penstock.cli.progress import reading, stages
from penstock.cli.splat_options import Drawing, File, Fps, Memory, Seconds, Viewing, scene_rate
from penstock.cli.splat_timings import Timings
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.export.report import ProgressCallback
    from penstock.runtime.splats.stage import Stage
    from penstock.runtime.splats.terminal import Screen

EXAMPLES = examples(
    "penstock splat play scene.psplat",
    "penstock splat play scene.psplat --memory 64MiB --orbit",
    "penstock splat play scene.psplat --fast --json | jq .frames_per_second",
)
STILL_SECONDS = 4.0  # of a scene that does not move
TURN_SECONDS = 8.0  # of one turn of the camera
MOST_FRAMES = 10_000_000  # 92 hours at 30 frames a second
COLOUR_TOLERANCE = 0.004  # radians, see SplatRenderer: under 1/255 in most colours


@grouped
def play(
    file: File,
    *,
    orbit: Annotated[bool, typer.Option("--orbit", help="Go around the scene meanwhile.")] = False,
    fps: Fps = None,
    loops: Annotated[
        int, typer.Option(min=1, metavar="N", help="Times that the scene is played.")
    ] = 1,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Every frame, one after the other, instead of in time."),
    ] = False,
    no_picture: Annotated[
        bool, typer.Option("--no-picture", help="Only draw and measure, also in a terminal.")
    ] = False,
    viewing: Viewing,
    drawing: Drawing,
    memory: Memory = None,
    seconds: Seconds = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Play a scene in time, drawn on the CPU.

    In a terminal with colours each character shows two pixels; elsewhere, and with --json, frames
    are only drawn. Frames for which there was no time are left out and counted; --fast leaves out
    none. A .psplat file is read by segments, of which no more are kept than --memory allows. At the
    end it is said how many frames a second there were and where their time went. A scene that does
    not move is shown for four seconds. Ctrl-C ends it.
    """
    from penstock.runtime.splats.stage import open_stage

    begin = time.perf_counter()
    picture = viewing.picture()
    lazy = {"colour_tolerance": COLOUR_TOLERANCE, **drawing.arguments()}
    with reading(wanted=not as_json):
        stage = open_stage(file, memory=memory, picture=picture, seconds=seconds, **lazy)
    with stage:
        opened = time.perf_counter()
        screen = _screen(wanted=not (as_json or no_picture))
        with stages(wanted=not as_json and screen is None) as show:
            report = _play(stage, viewing, orbit, fps, loops, fast, screen, show)
        report |= {
            "file": file, "splats": stage.count, "memory": stage.memory,
            "open_seconds": opened - begin,
        }  # fmt: skip
    timings = report.pop("timings")
    if as_json:
        emit_json({**report, **timings.to_dict()})
        return
    dropped = f", {report['dropped']} left out" if report["dropped"] else ""
    say(
        f"{report['drawn']} frames in {report['seconds']:.2f} s, "
        f"{report['frames_per_second']:.1f} a second{dropped}."
    )
    say(f"{timings.line()}.")


def _play(
    stage: Stage,
    viewing: Viewing,
    orbit: bool,
    fps: float | None,
    loops: int,
    fast: bool,
    screen: Screen | None,
    show: ProgressCallback | None,
) -> dict[str, Any]:
    from penstock.export.report import Progress

    span = stage.end - stage.start if stage.dynamic else 0.0
    rate = fps or scene_rate(stage)
    frames = max(1, round((span or STILL_SECONDS) * rate)) * loops
    if frames > MOST_FRAMES:
        raise UsageError(
            f"{span:g} s at {rate:g} frames a second, {loops} times, are {frames} frames, more "
            f"than {MOST_FRAMES}; give a smaller --fps or --loops"
        )
    turn_frames = max(1, round(TURN_SECONDS * rate))
    if orbit:
        cameras = viewing.over(stage, turn_frames, 360.0)
    else:
        cameras = viewing.over(stage, 1, 0.0)
    timings, number, drawn = Timings(), 0, 0
    begin = time.perf_counter()
    stopped = False
    with nullcontext() if screen is None else screen:
        try:
            while number < frames:
                at = stage.start + (number / rate) % span if span else stage.start
                frame = stage.render(cameras[number % len(cameras)], at)
                shown = time.perf_counter()
                if screen is not None:
                    screen.show(frame.image)
                now = time.perf_counter()
                timings.add(frame.times, stage.bytes, 1000 * (now - shown))
                drawn += 1
                number += 1
                if show is not None:
                    show(Progress("frames", number, frames, "frames"))
                if not fast:
                    number = max(number, int((now - begin) * rate))
                    due = begin + number / rate
                    if due > now:  # the last one, too, is shown for its time
                        time.sleep(due - now)
        except KeyboardInterrupt:  # as players end; of nothing there is nothing to say
            if drawn == 0:
                raise
            stopped = True
    seconds = time.perf_counter() - begin
    frames = min(number, frames) if stopped else frames
    return {
        "timings": timings,
        "width": cameras[0].width,
        "height": cameras[0].height,
        "fps": rate,
        "in_time": not fast,
        "stopped": stopped,
        "drawn": drawn,
        "dropped": frames - drawn,
        "seconds": seconds,
        "frames_per_second": drawn / seconds,
    }


def _screen(*, wanted: bool) -> Screen | None:
    """The terminal behind stdout, where it is one that can be drawn on."""
    if not wanted or not sys.stdout.isatty():
        return None
    from rich.console import Console

    from penstock.runtime.splats.terminal import Screen

    console = Console(file=sys.stdout)  # which knows terminals: TERM, COLORTERM, NO_COLOR
    if console.no_color or console.color_system != "truecolor":
        say("No pictures: this terminal does not say that it has colours of 24 bits (COLORTERM).")
        return None
    columns, lines = shutil.get_terminal_size()
    return Screen(sys.stdout, columns, lines) if columns >= 2 and lines >= 3 else None
