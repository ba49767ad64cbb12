"""Names of files for C and C++: a name of a Unix file is bytes, which need not be UTF-8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def native_name(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name by which the core can open a file: its own, or while this runs, a descriptor's.

    Raises:
        OSError: the file cannot be opened.
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield str(Path("/dev/fd") / str(descriptor))
        finally:
            os.close(descriptor)
    else:
        yield name
