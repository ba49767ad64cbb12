"""Reads splat files within their size: no length of a file is believed before it is checked.

Compressed data is bounded twice: it never becomes more than the file's own header asks for, and
what the header asks for may not be out of all proportion to the file (`check_ratio`).
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from penstock.errors import BackendMissingError, FormatError, StorageError
from penstock.loaders.zip_errors import ZIP_ERRORS, zip_error

MAX_RATIO = 40
"""Splats compress 2 to 20 times; a file that grows forty times is made to exhaust memory."""
FREE_BYTES = 16 << 20
"""So much is no harm, whatever it grows from: zero-filled tests and tiny scenes are real."""

ARCHIVE_ERRORS = (*ZIP_ERRORS, zlib.error, struct.error, OverflowError, KeyError)
"""What a damaged zip file makes Python's zipfile raise while it is read."""


@contextmanager
def open_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size in bytes.

    Raises:
        StorageError: it cannot be read, or has no size: a pipe or a device.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():  # open waits for pipes
            raise StorageError(f"{path}: is a pipe or a device; splats are read from files")
        with open(path, "rb") as handle:
            yield handle, os.fstat(handle.fileno()).st_size
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None


def file_size(path: Path) -> int:
    """In bytes.

    Raises:
        StorageError: it cannot be read.
    """
    with open_file(path) as (_, size):
        return size


def zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """What is in a zip file, by its table.

    Raises:
        FormatError: it is damaged.
        StorageError: it cannot be read.
    """
    with open_file(path) as (handle, _):
        try:
            with zipfile.ZipFile(handle) as archive:
                return archive.infolist()
        except ARCHIVE_ERRORS as error:
            raise zip_error(path, error, f"a damaged archive ({error}); fetch it again") from None


def file_error(path: Path, offset: int, what: str) -> FormatError:
    """An error at an offset of a file, to be raised."""
    return FormatError(f"{path}: at offset {offset}: {what}")


def take(path: Path, handle: BinaryIO, size: int, count: int, what: str) -> bytes:
    """The next `count` bytes, looked for before they are asked for.

    Args:
        size: of the file.

    Raises:
        FormatError: the file ends before.
    """
    at = handle.tell()
    if count > size - at:
        raise cut_short(path, at, what, count, size)
    data = handle.read(count)
    if len(data) != count:
        raise cut_short(path, at, what, count, at + len(data))
    return data


def cut_short(path: Path, offset: int, what: str, needs: int, size: int) -> FormatError:
    """`what` needs so many bytes from the offset on, and the file, of `size` bytes, ends before."""
    return file_error(
        path,
        offset,
        f"{what} needs {needs} bytes but the file ends at {size}; it is cut short or damaged, "
        "fetch it again",
    )


def check_ratio(path: Path, packed: int, unpacked: int) -> None:
    """Refuse a file that would become out of all proportion to its size.

    Args:
        packed: bytes that there are.
        unpacked: bytes that they would become.

    Raises:
        FormatError: they are too many.
    """
    if unpacked > max(FREE_BYTES, MAX_RATIO * packed):
        raise FormatError(
            f"{path}: its {packed} bytes announce {unpacked} bytes of splats, over {MAX_RATIO} "
            "times as many; no real scene compresses so, the file is damaged or hostile"
        )


class Inflater:
    """A gzip member, decompressed from its begin on, as far as it is asked for."""

    def __init__(self, path: Path, packed: bytes) -> None:
        self.path = path
        self.packed = packed
        self._stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._rest = packed

    def read(self, count: int) -> bytes:
        """The next bytes, at most `count`; fewer where the data ends.

        Raises:
            FormatError: the compressed data is damaged.
        """
        out = bytearray()
        try:
            while len(out) < count and not self._stream.eof:
                piece = self._stream.decompress(self._rest, count - len(out))
                self._rest = self._stream.unconsumed_tail
                if not piece and not self._rest:
                    break
                out += piece
        except zlib.error as error:
            raise FormatError(
                f"{self.path}: its gzip data is damaged ({error}); fetch the file again"
            ) from None
        return bytes(out)

    def check_end(self) -> None:
        """Refuse data that ends before its checksum. What goes on after the splats may be there.

        Raises:
            FormatError: it is cut short, or the checksum is wrong.
        """
        if not self.read(1) and not self._stream.eof:
            raise FormatError(
                f"{self.path}: its gzip data ends before its checksum; the file is cut short, "
                "fetch it again"
            )


def import_zstandard() -> Any:
    """The module zstandard.

    Raises:
        BackendMissingError: it is not installed.
    """
    try:
        import zstandard
    except ImportError:
        raise BackendMissingError(
            "SPZ files of version 4 need zstandard, which is not installed; install it with: "
            "pip install 'penstock[splats]'"
        ) from None
    return zstandard


def unzstd(path: Path, packed: bytes, size: int, offset: int, what: str) -> bytes:
    """One zstd frame, which becomes `size` bytes.

    Raises:
        BackendMissingError: zstandard is not installed.
        FormatError: it is damaged, or becomes more or fewer.
    """
    zstandard = import_zstandard()
    if not size:  # zero as a limit would mean none
        if packed:
            raise file_error(path, offset, f"{what} has {len(packed)} bytes for no splats")
        return b""
    try:
        # The frame's own size is what the library allocates, before any limit.
        announced = zstandard.frame_content_size(packed)
        if announced not in (size, -1):
            raise file_error(
                path, offset, f"{what} announces {announced} bytes, the splats have {size}"
            )
        data: bytes = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise file_error(
            path, offset, f"{what} is damaged ({error}); fetch the file again"
        ) from None
    if len(data) != size:
        raise file_error(path, offset, f"{what} becomes {len(data)} bytes, the splats have {size}")
    return data
