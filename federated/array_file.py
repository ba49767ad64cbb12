"""Named arrays as the bytes of an npz file, as they travel and lie in a store. No pickle."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError
from penstock.federated.arrays import Arrays


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """As an uncompressed npz file: float weights do not compress."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # A fixed date, so that the same arrays give the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
    return buffer.getvalue()


def unpack_arrays(data: bytes, source: str) -> Arrays:
    """Back from `pack_arrays`. It cannot become larger than it is: compressed files are refused.

    Raises:
        FormatError: not such bytes, or damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(data):
                    raise ValueError(f"{entry.filename} is compressed")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (
        ValueError,
        TypeError,
        OSError,
        EOFError,
        KeyError,
        SyntaxError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
    ) as error:
        raise FormatError(f"{source}: not whole: {type(error).__name__}: {error}") from error
