"""`penstock caption`: sentences about photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, percent, say
from penstock.cli.options import examples
from penstock.cli.progress import stages

if TYPE_CHECKING:
    from penstock.runtime.caption.album_report import AlbumReport, PhotoCaption, PhotoFailure

EXAMPLES = examples(
    "penstock caption holiday.jpg",
    "penstock caption ~/Pictures --html captions.html",
    "penstock caption *.jpg --concepts --beams 5",
    "penstock caption ~/Pictures --json | jq -r '.photos[].caption'",
)


def caption(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", hidden=True)],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="FILE", help="A captioner file. Without it: the embedded one."
        ),
    ] = None,
    beams: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10,
            metavar="N",
            help="Captions followed at a time; 1 is fastest. Without it: as the model was made.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens of a caption at most.")
    ] = None,
    threads: options.Threads = None,
    concepts: Annotated[
        bool, typer.Option("--concepts", help="Show what was seen, below each caption.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write one page with the photos and their captions."
        ),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Say in a sentence what photos show.

    PHOTO is a file, or a folder: then every photo in and under it, less hidden ones. One line a
    photo goes to stdout: `path: caption`. Photos may be turned, in CMYK, with a palette, with 16
    bits or huge; of animated ones the first frame is taken. Those that cannot be read are named on
    stderr and the others go on; the exit code is then 1. Needs the extra 'caption': pip install
    'penstock[caption]'.
    """
    from penstock.export.report import Progress
    from penstock.runtime.caption.album import caption_album
    from penstock.runtime.caption.album_report import PhotoFailure

    total = done = 0
    with stages(wanted=not as_json) as show:

        def on_start(count: int) -> None:
            nonlocal total
            total = count

        def on_photo(result: PhotoCaption | PhotoFailure) -> None:
            nonlocal done
            done += 1
            if isinstance(result, PhotoFailure):
                say_line(f"Error: {result.error}")
            elif not as_json:
                _print_caption(result, concepts)
            if show is not None:
                show(Progress("captions", done, total, "photos"))

        report = caption_album(
            photos,
            model=model,
            beams=beams,
            max_tokens=max_tokens,
            threads=threads,
            html=html,
            on_start=on_start,
            on_photo=on_photo,
        )
    if as_json:
        emit_json(report.to_dict())
    else:
        _say_where_time_went(report)
        if html is not None:
            say_line(f"Wrote {html}.")
    if report.failures:
        raise typer.Exit(1)


def say_line(text: str) -> None:
    """Say what may contain names of files: in one line, whatever they are."""
    from penstock.runtime.caption.printable import printable

    say(printable(text))


def _print_caption(result: PhotoCaption, concepts: bool) -> None:
    from penstock.runtime.caption.printable import printable

    print(printable(f"{result.path}: {result.caption.text}"), flush=True)
    if concepts:
        seen = ", ".join(f"{one.name} {one.score:.2f}" for one in result.caption.concepts)
        print(f"  concepts: {printable(seen) or 'none'}", flush=True)
    if result.note is not None:
        say_line(f"Note: {result.path}: {result.note}.")


def _say_where_time_went(report: AlbumReport) -> None:
    count = len(report.captions)
    line = f"{count} {'photo' if count == 1 else 'photos'} in {report.seconds:.2f} s"
    if count:
        spent = ", ".join(f"{name} {percent(share, 0)}" for name, share in report.shares().items())
        line += f", {report.photos_per_second:.1f} a second: {spent}"
    if report.failures:
        line += f"; {len(report.failures)} could not be captioned"
    say(f"{line}.")
