"""`penstock splat info`: what is in a file of splats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, print_facts, size
from penstock.cli.options import examples

EXAMPLES = examples(
    "penstock splat info scene.ply",
    "penstock splat info scene.psplat --json | jq .count",
)


def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what is in a file of splats.

    FILE is one of: PLY of 3D Gaussian splatting, PlayCanvas compressed PLY, .splat, SPZ, SOG (a
    .sog, or its folder), SpaceTime-Gaussian PLY, a checkpoint of rotor 4D Gaussian splatting (.pth,
    .npz), .4dgs, .psplat. What it is is found in it, not in its name. Only as much is read as that
    takes.
    """
    from penstock.loaders.splats.formats import summary

    found = summary(file)
    if as_json:
        emit_json(found.to_dict())
        return
    facts = [
        ("file", str(found.path)),
        ("format", found.format),
        ("size", size(found.nbytes)),
        ("splats", f"{found.count:,}"),
    ]
    if found.count:
        facts.append(("a splat", f"{found.nbytes / found.count:.2f} bytes"))
    facts.append(("harmonics", f"degree {found.degree}"))
    if found.dynamic:
        rate = "" if found.fps is None else f", {found.fps:g} frames a second"
        facts.append(("time", f"{found.start:g} to {found.end:g} s{rate}"))
    if found.box is not None:
        low, high = found.box
        facts.append(
            ("box", " x ".join(f"{a:.4g}..{b:.4g}" for a, b in zip(low, high, strict=True)))
        )
    print_facts([*facts, *found.details, *found.lost])
