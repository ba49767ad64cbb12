"""`penstock splat view`: a scene in a browser of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, say
from penstock.cli.options import examples
from penstock.cli.progress import reading
from penstock.cli.splat_options import (
    Background,
    Footprint,
    Seconds,
    check_footprint,
    parse_colour,
)

EXAMPLES = examples(
    "penstock splat view scene.psplat",
    "penstock splat view scene.ply --open",
    "penstock splat view scene.spz --port 0 --json",
)


def view(
    file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)],
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="0 takes a free one and prints it.")
    ] = 8090,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in this machine's browser.")
    ] = False,
    background: Background = "black",
    footprint: Footprint = "exact",
    seconds: Seconds = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a scene in a browser: one page, drawn by its WebGL.

    FILE is of any format that `penstock splat info` knows. The page needs nothing from the network
    and is there for this machine only. Drag to turn, Shift-drag or two fingers to move, wheel or
    pinch to come nearer; a scene that moves has a timeline, and Space plays it. One line on stdout
    says where the page is. Ctrl-C or SIGTERM ends it.
    """
    import webbrowser

    from penstock.loaders.splats.formats import open_splats
    from penstock.runtime.caption.printable import printable
    from penstock.runtime.splats.view_server import ViewServer

    check_footprint(footprint)
    colour, name = parse_colour(background), printable(scene_name(file))
    with reading(wanted=not as_json):
        server = ViewServer(
            open_splats(file, seconds), name, port=port, background=colour, footprint=footprint
        )
    with server:

        def ready() -> None:
            if as_json:
                emit_json({"url": server.url, "file": file, "splats": server.count})
            else:
                print(f"Viewing {name} at {server.url}", flush=True)
            if open_browser and not webbrowser.open(server.url):
                say("Note: no browser could be started; open the address yourself.")

        server.wait(ready)
    say("Stopped.")


def scene_name(file: Path) -> str:
    """What people call a file; of SOG, a folder or its meta.json, the folder with its parent's."""
    place = file.resolve()
    if place.name == "meta.json":
        place = place.parent
    return "/".join(place.parts[-2:]) if place.is_dir() else place.name
