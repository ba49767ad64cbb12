"""Which photos are meant: files, and the photos in folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from penstock.runtime.caption.pillow import REFUSED, need_pillow

HEIC_SUFFIXES = {".heic", ".heif", ".hif"}  # listed without their library, to be told of it


def find_photos(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The photos that are meant: files as they are, and for a folder the photos in it.

    A folder gives the files in and under it whose names end as photos do, sorted, without hidden
    files and folders and without following links to folders. A folder that cannot be listed stays
    in the list, and fails where it is read. No file is listed twice.

    Raises:
        BackendMissingError: Pillow, which knows the names, is not installed.
    """
    suffixes = photo_suffixes()
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        found.update(dict.fromkeys(_photos_under(path, suffixes) if path.is_dir() else [path]))
    return list(found)


def photo_suffixes() -> set[str]:
    """How names of photos end, in lower case with the dot.

    Raises:
        BackendMissingError: Pillow is not installed.
    """
    image = need_pillow()
    names = {name for name in image.OPEN if name not in REFUSED}
    known = {suffix for suffix, name in image.registered_extensions().items() if name in names}
    return known | HEIC_SUFFIXES


def _photos_under(folder: Path, suffixes: set[str]) -> list[Path]:
    found: list[Path] = []

    def unlisted(error: OSError) -> None:
        found.append(Path(error.filename))

    for here, folders, names in os.walk(folder, onerror=unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(here, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)
