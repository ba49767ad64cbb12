"""The names of concepts: lists such as Visual Genome's objects and attributes, one concept a line.

Names separated by commas are synonyms, the usual one first: `stop sign,stopsign`.
https://github.com/peteanderson80/bottom-up-attention, data/genome/1600-400-20.
"""

from __future__ import annotations

from pathlib import Path

from penstock.errors import FormatError, StorageError

MAX_FILE_BYTES = 16 << 20
MAX_NAME = 100  # characters; a longer one is no name


def read_concepts(*paths: Path) -> tuple[str, ...]:
    """The first name of each line of the files, in their order, each once.

    Raises:
        FormatError: a file is not such a list, or none of them has a name.
        StorageError: a file cannot be read.
    """
    names: dict[str, None] = {}
    for path in paths:
        for number, line in enumerate(_read_text(path).splitlines(), start=1):
            if line.strip():
                names[_first_name(path, number, line)] = None
    if not names:
        raise FormatError(
            f"{', '.join(map(str, paths))}: no concept in it; expected one name a line"
        )
    return tuple(names)


def _first_name(path: Path, number: int, line: str) -> str:
    name = " ".join(line.split(",")[0].split())
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise FormatError(
            f"{path}: line {number} begins with {line[:40]!r}; expected a name of at most "
            f"{MAX_NAME} characters, and synonyms after commas"
        )
    return name


def _read_text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise FormatError(f"{path}: is over {MAX_FILE_BYTES} bytes, far more than a list of names")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
