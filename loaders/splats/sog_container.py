"""The files of a SOG scene: in a folder, or in a zip file; read within limits."""

from __future__ import annotations

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, FormatError, StorageError
from penstock.loaders.splats.file_access import ARCHIVE_ERRORS, open_file, take
from penstock.loaders.zip_errors import zip_error

FORMATS = ("WEBP", "PNG")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that Python unpacks within a limit
MAX_META = 4 << 20  # bytes of meta.json; four codebooks of 256 numbers have 20 KB
SPARE_PIXELS = 1 << 16  # of an image, over those that are needed: rows are filled up
MAX_ENTRIES = 256


class SogContainer(ABC):
    """Files by name.

    Attributes:
        path: for messages.
        nbytes: of the whole scene, as it is stored.
    """

    path: Path
    nbytes: int

    @abstractmethod
    def check(self, name: str) -> None:
        """That a file is there, without reading it.

        Raises:
            FormatError: there is none.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FormatError: there is none, or it is damaged.
            StorageError: it cannot be read.
        """

    def pixels(self, name: str, count: int, width: int | None = None) -> NDArray[np.uint8]:
        """The first `count` pixels [count, 4] of an image, red, green, blue and alpha.

        Args:
            width: that the image must have.

        Raises:
            BackendMissingError: Pillow is not installed.
            FormatError: no image, or one of fewer pixels, or of far more.
        """
        if not count:
            return np.empty((0, 4), np.uint8)
        images = _import_pillow()
        raw = self.read(name)
        try:
            with images.open(io.BytesIO(raw), formats=FORMATS) as image:
                size = image.width * image.height
                if size < count or size > 4 * count + SPARE_PIXELS:
                    raise FormatError(
                        f"{self.path}: image '{name}' has {image.width} by {image.height} pixels; "
                        f"expected {count} and not many more"
                    )
                if width is not None and image.width != width:
                    raise FormatError(
                        f"{self.path}: image '{name}' is {image.width} pixels wide, "
                        f"expected {width}"
                    )
                array = np.asarray(image.convert("RGBA"))
        except (*ARCHIVE_ERRORS, SyntaxError, images.DecompressionBombError):
            raise FormatError(
                f"{self.path}: image '{name}' of {len(raw)} bytes cannot be read; expected "
                "lossless WebP"
            ) from None
        pixels: NDArray[np.uint8] = array.reshape(-1, 4)[:count]
        return pixels


@contextmanager
def open_sog(path: Path) -> Iterator[SogContainer]:
    """A folder with meta.json, that meta.json itself, or a zip file of it.

    Raises:
        FormatError: none of these.
        StorageError: it cannot be read.
    """
    if path.is_dir():
        yield _Folder(path)
    elif path.name == "meta.json":
        yield _Folder(path.parent)
    else:
        with open_file(path) as (handle, size):
            try:
                archive = zipfile.ZipFile(handle)
            except ARCHIVE_ERRORS as error:
                raise zip_error(path, error, f"not a zip file ({error}); fetch it again") from None
            with archive:
                yield _Zip(path, archive, size)


class _Folder(SogContainer):
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            files = [file for file in path.iterdir() if file.is_file()]
            self.sizes = {file.name: file.stat().st_size for file in files}
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
        self.nbytes = sum(self.sizes.values())

    def check(self, name: str) -> None:
        if name not in self.sizes:  # also of names with slashes
            raise FormatError(
                f"{self.path}: has no file '{name[:80]}'; expected a folder of SOG with meta.json "
                "and the images that it names"
            )

    def read(self, name: str) -> bytes:
        self.check(name)
        with open_file(self.path / name) as (handle, size):
            _check_meta(self.path, name, size)
            return take(self.path / name, handle, size, size, "the file")


class _Zip(SogContainer):
    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.path = path
        self.nbytes = size
        self.archive = archive
        if len(archive.infolist()) > MAX_ENTRIES:
            raise FormatError(f"{path}: {len(archive.infolist())} files, more than {MAX_ENTRIES}")

    def check(self, name: str) -> None:
        if name not in self.archive.NameToInfo:
            raise FormatError(
                f"{self.path}: has no file '{name[:80]}' in it; expected meta.json and the images "
                "that it names at the root"
            )

    def read(self, name: str) -> bytes:
        self.check(name)
        entry = self.archive.getinfo(name)
        _check_meta(self.path, name, entry.file_size)
        # Images are compressed already: packing makes them no smaller.
        if entry.compress_type not in METHODS or entry.file_size > MAX_META + 2 * self.nbytes:
            raise FormatError(
                f"{self.path}: '{name}' is packed by method {entry.compress_type} to become "
                f"{entry.file_size} bytes; expected images as they are"
            )
        try:
            return self.archive.read(entry)
        except ARCHIVE_ERRORS as error:
            damaged = f"'{name}' in it is damaged ({error}); fetch it again"
            raise zip_error(self.path, error, damaged) from None


def _check_meta(path: Path, name: str, size: int) -> None:
    if name == "meta.json" and size > MAX_META:
        raise FormatError(
            f"{path}: meta.json has {size} bytes, more than {MAX_META}; it is damaged"
        )


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise BackendMissingError(
            "SOG scenes are read by Pillow, which is not installed; install it with: "
            "pip install 'penstock[splats]'"
        ) from None
    return Image
