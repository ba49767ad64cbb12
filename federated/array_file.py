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
from penstock.loaders.npz_parts import write_npz


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """As an uncompressed npz file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    write_npz(buffer, arrays)
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
