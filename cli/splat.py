"""`penstock splat`: scenes of Gaussian splats, still and moving; one file a command."""

from __future__ import annotations

import typer

from penstock.cli import (
    splat_compress,
    splat_convert,
    splat_info,
    splat_play,
    splat_render,
    splat_view,
)
from penstock.cli.options import examples
from penstock.cli.plain_help import PlainCommand, PlainGroup

app = typer.Typer(
    name="splat",
    no_args_is_help=True,
    cls=PlainGroup,
    rich_markup_mode=None,
    help="Compress, convert, render, play and view scenes of Gaussian splats.",
    epilog=examples(
        "penstock splat info scene.ply",
        "penstock splat compress scene.ply scene.psplat",
        "penstock splat render scene.psplat turn.webp --orbit",
        "penstock splat view scene.psplat",
    ),
)


@app.callback()
def _splats() -> None:
    """Compress, convert, render, play and view scenes of Gaussian splats."""


app.command(cls=PlainCommand, epilog=splat_info.EXAMPLES)(splat_info.info)
app.command(cls=PlainCommand, epilog=splat_compress.EXAMPLES)(splat_compress.compress)
app.command(cls=PlainCommand, epilog=splat_convert.EXAMPLES)(splat_convert.convert)
app.command(cls=PlainCommand, epilog=splat_render.EXAMPLES)(splat_render.render)
app.command(cls=PlainCommand, epilog=splat_play.EXAMPLES)(splat_play.play)
app.command(cls=PlainCommand, epilog=splat_view.EXAMPLES)(splat_view.view)
