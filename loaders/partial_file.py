"""Files that are whole or not there: written under another name, synced, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from penstock.errors import StorageError


@contextmanager
def partial_file(out: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A file under a temporary name that becomes `out`, whole and synced, or leaves nothing.

    Raises:
        StorageError: the folder or the device does not take it.
    """
    temporary = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with open(temporary, "w+b") as handle:
            yield handle, temporary
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, out)
        _sync_folder(out.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(out, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def keep_file(made: Path, out: Path) -> None:
    """Rename a file that was written whole and synced; it lies on the same device as `out`.

    Raises:
        StorageError: the folder does not take it.
    """
    try:
        os.replace(made, out)
        _sync_folder(out.parent)
    except OSError as error:
        raise _unwritable(out, error) from error


def check_writable(out: Path) -> None:
    """Find out before long work whether `partial_file` could begin there.

    Raises:
        StorageError: it could not.
    """
    if out.is_dir():
        raise StorageError(f"{out}: this is a folder; give the name of a file")
    temporary = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        open(temporary, "wb").close()
        temporary.unlink()
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{out}: cannot be written: {error.strerror or error}; check the folder and the free space"
    )


def _sync_folder(folder: Path) -> None:
    """Make a rename last. Where folders cannot be synced, the file is whole all the same."""
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):
        os.fsync(handle)
    os.close(handle)
