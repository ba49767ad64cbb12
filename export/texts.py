"""The texts that an export calibrates on and is judged by.

The package holds two: `calibration.txt` from Andrew Lang's Yellow Fairy Book (1894) and
`evaluation.txt` from his Lilac Fairy Book (1910), both in the public domain.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from penstock.errors import StorageError, UsageError


def read_text(path: str | os.PathLike[str] | None, default: str) -> str:
    """A text file, or the package's own `default` when no path is given.

    Raises:
        StorageError: it cannot be read. UsageError: it is not UTF-8, or too short to be of use.
    """
    if path is None:
        return resources.files("penstock.export").joinpath("data", default).read_text("utf-8")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not a UTF-8 text ({error.reason}); give a plain text file"
        ) from None
    if len(text) < 1000:
        raise UsageError(
            f"{path}: {len(text)} characters; calibration needs a text of 1,000 or more"
        )
    return text
