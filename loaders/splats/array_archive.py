"""Named arrays in an npz file, read without pickle and without belief in its sizes.

An array's header must agree with the archive's table, and the table with the file's size.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError
from penstock.loaders.npz_parts import read_header, write_npz
from penstock.loaders.partial_file import partial_file
from penstock.loaders.splats.file_access import ARCHIVE_ERRORS, check_ratio, open_file
from penstock.loaders.zip_errors import zip_error

MAX_ENTRIES = 64
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that Python unpacks within a limit
DAMAGED = "a damaged npz archive ({}); fetch it again"


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of numbers of an npz file, by name.

    Raises:
        FormatError: damaged, out of all proportion, or with what are no numbers.
        StorageError: it cannot be read.
    """
    with open_file(path) as (handle, size):
        try:
            with zipfile.ZipFile(handle) as archive:
                entries = archive.infolist()
                _check_entries(path, entries, size)
                return {e.filename[:-4]: _read_array(path, archive, e) for e in entries}
        except ARCHIVE_ERRORS as error:
            raise zip_error(path, error, DAMAGED.format(error)) from None


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise FormatError(f"{path}: {len(entries)} arrays, more than {MAX_ENTRIES}")
    names = [entry.filename for entry in entries]
    for entry in entries:
        if not entry.filename.endswith(".npy") or names.count(entry.filename) > 1:
            raise FormatError(
                f"{path}: entry '{entry.filename[:80]}' of the archive; expected one array of "
                "each name, .npy"
            )
        if entry.compress_type not in METHODS:
            raise FormatError(
                f"{path}: entry '{entry.filename}' is packed by method {entry.compress_type}; "
                "expected none or deflate"
            )
    check_ratio(path, size, sum(entry.file_size for entry in entries))


def _read_array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    raw = archive.read(entry)  # at most entry.file_size bytes, which were checked
    stream = io.BytesIO(raw)
    try:
        header = read_header(stream)
    except (ValueError, EOFError) as error:
        raise FormatError(
            f"{path}: array '{entry.filename}' has a damaged header: {error}"
        ) from None
    begin, shape, dtype = stream.tell(), header.shape, header.dtype
    if dtype.kind not in "fiub":
        raise FormatError(f"{path}: array '{entry.filename}' is of {dtype}, expected numbers")
    if header.nbytes != len(raw) - begin:
        raise FormatError(
            f"{path}: array '{entry.filename}' of shape {shape} and {dtype} needs "
            f"{header.nbytes} bytes, it has {len(raw) - begin}"
        )
    flat = np.frombuffer(raw, dtype, offset=begin) if header.nbytes else np.empty(0, dtype)
    return flat.reshape(shape[::-1]).T if header.fortran else flat.reshape(shape)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An npz file, as `write_npz` makes it, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    with partial_file(path) as (handle, _):
        write_npz(handle, arrays)
