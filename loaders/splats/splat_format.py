"""Which format a file or folder of splats has: found in it, not in its name."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from penstock.errors import FormatError
from penstock.loaders.splats.compressed_ply import is_compressed_ply
from penstock.loaders.splats.file_access import open_file, zip_entries
from penstock.loaders.splats.fourdgs_file import MAGIC as FOURDGS_MAGIC
from penstock.loaders.splats.ply_file import read_ply_header
from penstock.loaders.splats.rotor_file import is_rotor_ply
from penstock.loaders.splats.spacetime_ply import is_spacetime_ply
from penstock.loaders.splats.spz_container import GZIP_MAGIC
from penstock.loaders.splats.spz_container import MAGIC as SPZ_MAGIC

KNOWN = (
    "PLY (of INRIA, compressed of PlayCanvas, Spacetime Gaussians, rotor 4D), .splat, SPZ, SOG, "
    "rotor 4D checkpoints (.pth, .npz), .4dgs and .psplat"
)


class SplatFormat(Enum):
    """Formats that are read; the values are for people."""

    INRIA_PLY = "PLY"
    COMPRESSED_PLY = "PlayCanvas compressed PLY"
    SPACETIME_PLY = "Spacetime Gaussian PLY"
    ROTOR = "rotor 4D Gaussians"
    DOT_SPLAT = ".splat"
    SPZ = "SPZ"
    SOG = "SOG v2"
    FOURDGS = ".4dgs"
    PSPLAT = ".psplat"


# What the ending promises, where the begin of a file says nothing: its reader tells what is wrong.
ENDINGS = {
    ".ply": SplatFormat.INRIA_PLY,
    ".splat": SplatFormat.DOT_SPLAT,
    ".spz": SplatFormat.SPZ,
    ".sog": SplatFormat.SOG,
    ".4dgs": SplatFormat.FOURDGS,
    ".psplat": SplatFormat.PSPLAT,
    ".pth": SplatFormat.ROTOR,
    ".npz": SplatFormat.ROTOR,
}
LFS_POINTER = b"version https://git-lfs"


def splat_format(path: Path) -> SplatFormat:
    """Which format a file or folder has.

    Raises:
        FormatError: none that is known.
        StorageError: it cannot be read.
    """
    if path.is_dir() or path.name in ("meta.json", "lod-meta.json"):
        return _format_of_folder(path)
    with open_file(path) as (handle, size):
        head = handle.read(min(size, len(LFS_POINTER)))
    if head.startswith(b"ply"):
        return _format_of_ply(path)
    if head.startswith((SPZ_MAGIC, GZIP_MAGIC)):
        return SplatFormat.SPZ
    if head.startswith(FOURDGS_MAGIC):
        return SplatFormat.FOURDGS
    if head.startswith(b"PK"):
        return _format_of_zip(path)
    if head.startswith(_psplat_magic()):
        return SplatFormat.PSPLAT
    if head.startswith(LFS_POINTER):
        raise FormatError(
            f"{path}: a pointer of Git LFS instead of the file; fetch it with: git lfs pull"
        )
    found = ENDINGS.get(path.suffix.lower())
    if found is None:
        raise FormatError(f"{path}: not a file of splats that is known; expected {KNOWN}")
    return found


def _format_of_folder(path: Path) -> SplatFormat:
    folder = path if path.is_dir() else path.parent
    if path.name != "lod-meta.json" and (folder / "meta.json").is_file():
        return SplatFormat.SOG
    if (folder / "lod-meta.json").is_file():
        levels = sorted(file.parent.name for file in folder.glob("*/meta.json"))
        raise FormatError(
            f"{path}: several levels of detail; give the folder of one: "
            f"{', '.join(levels[:8]) or 'none is there'}"
        )
    raise FormatError(f"{path}: a folder without meta.json; expected one of SOG, or a file")


def _format_of_ply(path: Path) -> SplatFormat:
    ply = read_ply_header(path)
    vertex = ply.element("vertex")
    if is_compressed_ply(ply):
        return SplatFormat.COMPRESSED_PLY
    if is_spacetime_ply(vertex):
        return SplatFormat.SPACETIME_PLY
    return SplatFormat.ROTOR if is_rotor_ply(vertex) else SplatFormat.INRIA_PLY


def _format_of_zip(path: Path) -> SplatFormat:
    names = [entry.filename for entry in zip_entries(path)]
    if "meta.json" in names:
        return SplatFormat.SOG
    if any(name.endswith((".npy", "data.pkl")) for name in names):
        return SplatFormat.ROTOR
    raise FormatError(
        f"{path}: a zip file without meta.json (SOG), arrays (npz) or a checkpoint of torch in it; "
        f"expected {KNOWN}"
    )


def _psplat_magic() -> bytes:
    from penstock.loaders.splats.psplat_layout import MAGIC

    return MAGIC
