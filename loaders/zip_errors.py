"""What Python's zipfile raises, told apart: an archive is damaged, or it cannot be read."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path

from penstock.errors import FormatError, PenstockError, StorageError

ZIP_ERRORS = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    RuntimeError,  # encrypted, or of a method or version that it does not have
    ValueError,
)


def zip_error(path: Path, error: Exception, damaged: str) -> PenstockError:
    """One of `ZIP_ERRORS` as an error of Penstock.

    Args:
        damaged: the message where the archive is at fault, after the path.
    """
    # A seek to before the file's begin is an OSError, too.
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return StorageError(f"{path}: cannot be read: {error.strerror or error}")
    return FormatError(f"{path}: {damaged}")
