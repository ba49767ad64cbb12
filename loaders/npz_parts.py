"""What an npz file is made of: headers of arrays, read without belief in them, and its writing.

NumPy's own reader allocates what an array's header announces before it reads a byte, and raises
whatever Python's parser does where the header is damaged.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}  # 3.0 is for fields whose names are not Latin


@dataclass(frozen=True)
class ArrayHeader:
    """An array's shape, whether its first axis is the fastest, and its type."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Of the numbers that should follow."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes]) -> ArrayHeader:
    """The header with which an array begins; the stream is behind it then.

    Raises:
        ValueError: it is damaged, or of another version.
        BadZipFile, EOFError, OSError, zlib.error: from the archive that it is read from.
    """
    try:
        version = np.lib.format.read_magic(stream)
        if version not in READERS:
            raise ValueError(f"npy version {version}")
        header = ArrayHeader(*READERS[version](stream))
    except (ValueError, zipfile.BadZipFile, EOFError, OSError, zlib.error):
        raise
    except Exception as error:  # of damaged text: of NumPy, of tokenize, of Python's parser
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if min(header.shape, default=0) < 0:
        raise ValueError(f"shape {header.shape}")
    return header


def write_npz(out: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """An npz file that is not compressed, as trained numbers do not become smaller. The same arrays
    give the same bytes."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
