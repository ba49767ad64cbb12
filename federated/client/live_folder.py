"""The folder of a live model: a file a version, and the small file that names the current one.

live/model-000006.onnx  live/model-000007.onnx     written whole, then
live/current                                       renamed into place: this is the swap
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock.errors import FormatError, StorageError
from penstock.loaders.partial_file import partial_file

CURRENT = "current"
NAME = re.compile(r"model-(\d{6,})\.(onnx|tflite)")


@dataclass(frozen=True)
class Published:
    """One version, as the file `current` names it.

    Attributes:
        version: from 1. file: its name in the folder. previous: of the version before; empty: none.
        model: `ModelOptions.to_json()`; ratio: its width.
        max_difference: of its logits to torch's, over windows of noise.
    """

    version: int
    file: str
    previous: str
    model: str
    ratio: float
    max_difference: float = 0.0


def stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None: it is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    return found.st_ino, found.st_mtime_ns


def write_current(folder: Path, published: Published) -> None:
    """Make a version current: the swap.

    Raises:
        StorageError: it cannot be written; the version before stays current.
    """
    text = json.dumps(asdict(published)).encode()
    for name in (f".{published.file}.json", CURRENT):  # what `roll_back` needs, then the swap
        with partial_file(folder / name) as (file, _):
            file.write(text)


def read_current(folder: Path) -> Published | None:
    """The current version; None before the first.

    Raises:
        FormatError: the file is damaged, or names a version that is not there.
    """
    if not (folder / CURRENT).exists():
        return None
    published = read_meta(folder, "", CURRENT)
    if not (folder / published.file).is_file():
        raise FormatError(
            f"{folder / CURRENT}: names {published.file}, which is not there; publish a model again"
        )
    return published


def read_meta(folder: Path, file: str, name: str = "") -> Published:
    """What was told of a version when it was last current."""
    path = folder / (name or f".{file}.json")
    try:
        published = Published(**json.loads(path.read_bytes()))
        if not (
            isinstance(published.file, str)
            and NAME.fullmatch(published.file)
            and isinstance(published.previous, str)
        ):
            raise ValueError("names no version")
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise FormatError(
            f"{path}: damaged: {error}; remove it and publish a model again"
        ) from error
    return published


def versions(folder: Path) -> list[tuple[int, Path]]:
    """Number and file of every version in the folder, in order."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def remove_old(folder: Path, published: Published) -> None:
    """All but the current version and the one before; who has one open keeps it."""
    kept = {published.file, published.previous}
    for _, path in versions(folder):
        if path.name not in kept:
            path.unlink(missing_ok=True)
            (folder / f".{path.name}.json").unlink(missing_ok=True)
