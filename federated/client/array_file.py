"""Named arrays as the bytes of an npz file: how models and updates lie in the store. No pickle."""

from __future__ import annotations

import io
import zipfile

import numpy as np

from penstock.errors import FormatError
from penstock.federated.arrays import Arrays


def pack_arrays(arrays: Arrays) -> bytes:
    """As an uncompressed npz file: float weights do not compress."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack_arrays(data: bytes, source: str) -> Arrays:
    """Back from `pack_arrays`.

    Raises:
        FormatError: not such bytes, or damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise FormatError(f"{source}: not whole: {error}") from error
