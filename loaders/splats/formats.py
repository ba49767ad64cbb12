"""Opens splats of any format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from penstock.errors import UsageError
from penstock.loaders.splats.compressed_ply import read_compressed_ply
from penstock.loaders.splats.dot_splat import read_dot_splat
from penstock.loaders.splats.file_access import file_size
from penstock.loaders.splats.fourdgs_file import read_fourdgs
from penstock.loaders.splats.inria_ply import read_inria_ply
from penstock.loaders.splats.model import MAX_SECONDS, SplatModel
from penstock.loaders.splats.rotor_file import read_rotor_file
from penstock.loaders.splats.sog import read_sog
from penstock.loaders.splats.sog_container import open_sog
from penstock.loaders.splats.spacetime_ply import read_spacetime_ply
from penstock.loaders.splats.splat_format import SplatFormat, splat_format
from penstock.loaders.splats.spz import read_spz
from penstock.loaders.splats.summary import SUMMARIES, SplatSummary


def open_splats(path: Path, seconds: float | None = None) -> SplatModel:
    """The splats of a file, or of a folder of SOG, whole in memory.

    Args:
        seconds: that the scene takes, where its file does not say: a Spacetime Gaussian PLY, whose
            times are shares of that (None: 1), or rotor splats, from the start that the file says,
            or from 0 (None: from the first t_center to the last, of a checkpoint).

    Raises:
        BackendMissingError: a library that the format needs is not installed; it names the extra.
        FormatError: damaged, or of no format that is known.
        StorageError: it cannot be read.
        UnsupportedModelError: a variant of a known format that cannot be drawn.
        UsageError: seconds of another format, or not over 0.
    """
    found = splat_format(path)
    if seconds is None:
        return READERS[found](path)
    check_seconds(path, found, seconds)
    if found is SplatFormat.SPACETIME_PLY:
        return read_spacetime_ply(path, seconds)
    return read_rotor_file(path, seconds)


def check_seconds(path: Path, found: SplatFormat, seconds: float) -> None:
    """Refuse a length for a file that needs none.

    Raises:
        UsageError: as it says, or it is none.
    """
    timeless = (SplatFormat.SPACETIME_PLY, SplatFormat.ROTOR)
    if found not in timeless:
        raise UsageError(
            f"{path}: the seconds that a scene takes can be given for a "
            f"{' or '.join(one.value for one in timeless)}; this is {found.value}"
        )
    if not 0 < seconds <= MAX_SECONDS:
        raise UsageError(f"a scene of {seconds} seconds; expected over 0, at most {MAX_SECONDS:g}")


def summary(path: Path) -> SplatSummary:
    """What is in a file, with no more read than that takes. Raises as `open_splats`."""
    return SUMMARIES[splat_format(path)](path)


def stored_bytes(path: Path) -> int:
    """Of a file, or of all files of a folder of SOG. Raises as `open_splats`."""
    if splat_format(path) is not SplatFormat.SOG:
        return file_size(path)
    with open_sog(path) as container:
        return container.nbytes


def _read_psplat(path: Path) -> SplatModel:
    from penstock.loaders.splats.psplat_file import PsplatFile

    with PsplatFile.open(path) as file:
        return file.read_all()


READERS: dict[SplatFormat, Callable[[Path], SplatModel]] = {
    SplatFormat.INRIA_PLY: read_inria_ply,
    SplatFormat.COMPRESSED_PLY: read_compressed_ply,
    SplatFormat.SPACETIME_PLY: read_spacetime_ply,
    SplatFormat.ROTOR: read_rotor_file,
    SplatFormat.DOT_SPLAT: read_dot_splat,
    SplatFormat.SPZ: read_spz,
    SplatFormat.SOG: read_sog,
    SplatFormat.FOURDGS: read_fourdgs,
    SplatFormat.PSPLAT: _read_psplat,
}
