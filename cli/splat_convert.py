"""`penstock splat convert`: a scene of splats in a format of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, say, size
from penstock.cli.options import examples
from penstock.cli.progress import reading
from penstock.cli.splat_options import File, Out, Seconds, check_free, say_lost
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.loaders.splats.model import SplatModel

EXAMPLES = examples(
    "penstock splat convert scene.psplat scene.ply",
    "penstock splat convert scene.sog scene.spz --spz-version 4",
    "penstock splat convert flame.pth flame.npz --json",
)


class SpzVersion(str, Enum):
    """How an SPZ file is packed."""

    GZIP = "3"
    ZSTD = "4"


@dataclass(frozen=True)
class Format:
    """What an ending stands for.

    Attributes:
        still, moves: whether it holds scenes that do not move, and such that do.
        lost: what is not as it was in the scene that was read, for people.
        lost_moving: more of that, of a scene that moves.
    """

    still: bool
    moves: bool
    lost: str
    lost_moving: str = ""


FORMATS = {
    ".ply": Format(
        True, True,
        "nothing is lost, but that opacities of 0 and 1 become the nearest that have a logit",
        "; programs that know no motion leave it out",
    ),
    ".spz": Format(
        True, False,
        "positions are rounded to 1/4096, all else to bytes, harmonics after the first to 5 and 4 "
        "bits; what no byte reaches is cut off",
    ),
    ".npz": Format(
        False, True,
        "shapes and motions become 4D rotations and back but for rounding; colours go into the "
        "first of three bands of time",
    ),
}  # fmt: skip


def convert(
    file: File,
    out: Out,
    spz_version: Annotated[
        SpzVersion,
        typer.Option(help="Of .spz: 3 is packed by gzip, 4 by zstd: smaller, for newer programs."),
    ] = SpzVersion.GZIP,
    seconds: Seconds = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write a scene as PLY, SPZ or rotor npz.

    For other programs, with as much as their format holds.

    FILE is of any format that `penstock splat info` knows. OUT's ending says what is written: .ply
    as 3D Gaussian splatting has it, with columns of motion where the scene moves; .spz, for scenes
    that do not move; .npz with the parameters of rotor 4D splats, for scenes that do. OUT is
    written whole or not at all, and it is said what is lost. To make a .psplat, use `penstock splat
    compress`.
    """
    from penstock.loaders.partial_file import check_writable
    from penstock.loaders.splats.formats import open_splats, stored_bytes, summary

    written = FORMATS.get(out.suffix.lower())
    if written is None:
        raise UsageError(
            f"{out}: what is written is {', '.join(FORMATS)}; a .psplat is made by: penstock splat "
            "compress FILE OUT.psplat"
        )
    check_free(out, overwrite)
    check_writable(out)
    before = stored_bytes(file)
    with reading(wanted=not as_json):
        read = summary(file).lost
        model = open_splats(file, seconds)
    if not (written.moves if model.dynamic else written.still):
        other = " or ".join(
            ending for ending, one in FORMATS.items() if (one.moves if model.dynamic else one.still)
        )
        what = "moves" if model.dynamic else "does not move"
        raise UsageError(f"{file} {what}, which {out.suffix} cannot hold; write {other}")
    _write(out, model, spz_version)
    nbytes = out.stat().st_size
    lost = written.lost + (written.lost_moving if model.dynamic else "")
    if as_json:
        emit_json(
            {
                "file": file, "out": out, "bytes": nbytes, "file_bytes": before,
                "splats": model.count, "dynamic": model.dynamic, "lost": lost,
                "lost_in_reading": dict(read),
            }
        )  # fmt: skip
        return
    say(f"Wrote {out}: {model.count:,} splats, {size(nbytes)}; {size(before)} in {file}.")
    say_lost(file, read)
    say(f"As {out.suffix[1:]} has it: {lost}.")


def _write(out: Path, model: SplatModel, spz_version: SpzVersion) -> None:
    """By OUT's ending. Raises as the writers."""
    from penstock.loaders.splats.inria_ply import write_inria_ply
    from penstock.loaders.splats.rotor_file import write_rotor_npz
    from penstock.loaders.splats.spz_writer import write_spz

    if out.suffix.lower() == ".spz":
        write_spz(out, model, 3 if spz_version is SpzVersion.GZIP else 4)
    elif out.suffix.lower() == ".npz":
        write_rotor_npz(out, model)
    else:
        write_inria_ply(out, model)
