"""Photos as people have them: what Pillow reads, as upright sRGB pixels, or a clear refusal."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import (
    BackendMissingError,
    FormatError,
    PenstockError,
    StorageError,
    UsageError,
)
from penstock.runtime.caption.pillow import REFUSED, need_pillow, quiet_pillow
from penstock.runtime.caption.srgb import SrgbConversion

# Decoded at once, at 4 bytes each in Pillow: 800 MB. The largest phone cameras have 200 megapixels.
MOST_PIXELS = 200_000_000
MOST_SIDE = 100_000  # Pillow's time grows with the square of a row; no photo is nearly as wide
JPEG = b"\xff\xd8\xff"
# Others come of offsets in a damaged file that lead nowhere.
STORAGE_FAULTS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENXIO, errno.ENODEV}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
ORIENTATION = 0x0112  # of EXIF, 1 to 8
KEPT_FOR_QUALITY = 2  # coarse shrinking stops at twice the wanted side; the rest is a fine filter
MOST_COARSE = 32  # averages of more pixels than its square come out too dark in Pillow


@dataclass(frozen=True)
class Photo:
    """A photo that was read.

    Attributes:
        pixels: uint8 [height, width, 3], sRGB, upright, what was transparent over white.
        width, height: of the file's picture, upright; `pixels` may be smaller.
        format: as Pillow names it: JPEG, PNG...
        more_frames: it is animated or has further pages, of which this is the first.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    format: str
    more_frames: bool


def read_photo(
    path: str | os.PathLike[str], *, shortest_side: int | None = None
) -> NDArray[np.uint8]:
    """The pixels of a photo: uint8 [height, width, 3], sRGB, upright. See `open_photo`."""
    return open_photo(path, shortest_side=shortest_side).pixels


def open_photo(path: str | os.PathLike[str], *, shortest_side: int | None = None) -> Photo:
    """Read a photo: EXIF orientation, colour profiles, CMYK, palettes, 16 bits, transparency.

    Args:
        shortest_side: shrink until the shorter side has so many pixels; never enlarge. A JPEG is
            then decoded at a fraction of its size, in little memory.

    Raises:
        FormatError: no image, damaged, cut short, or over MOST_PIXELS or MOST_SIDE.
        StorageError: the file is not there or cannot be read.
        BackendMissingError: Pillow is not installed, or what HEIC needs.
        UsageError: shortest_side is under 1.
    """
    if shortest_side is not None and shortest_side < 1:
        raise UsageError(f"shortest_side is {shortest_side}, expected 1 or more")
    need_pillow()
    file = Path(path)
    try:
        _check_kind(file, os.stat(file).st_mode)
        with open(file, "rb") as handle:
            return _decode(file, handle, shortest_side)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        if isinstance(error, UsageError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{file}: cannot be read: {reason}") from None


def _check_kind(file: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise StorageError(f"{file}: this is a folder; give photos, or one that can be listed")
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        raise StorageError(f"{file}: this is a pipe or a device; save the photo in a file first")


def _decode(file: Path, handle: IO[bytes], shortest_side: int | None) -> Photo:
    pillow, what = need_pillow(), "image"
    try:
        start = handle.read(16)
        # A fraction of a huge JPEG can be decoded. Pillow refuses at twice its limit.
        with quiet_pillow(None if start.startswith(JPEG) else MOST_PIXELS // 2):
            image = _open(file, handle, start)
            what = f"{image.format} image"
            width, height = image.size
            if shortest_side is not None:
                image.draft(None, (KEPT_FOR_QUALITY * shortest_side,) * 2)
            _check_size(file, image, (width, height))
            more_frames = _has_more(image)
            image.load()
            pixels, turned = _upright(image, shortest_side)
    except PenstockError:
        raise
    except pillow.DecompressionBombError:
        raise _too_large(file, "this picture's") from None
    except MemoryError:
        raise PenstockError(
            f"{file}: memory does not suffice to decode this {what}; make it smaller first"
        ) from None
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        if isinstance(error, OSError) and error.errno in STORAGE_FAULTS:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"{file}: this {what} is damaged or cut short: {reason}") from None
    if turned:
        width, height = height, width
    return Photo(pixels, width, height, str(image.format), more_frames)


def _open(file: Path, handle: IO[bytes], start: bytes) -> Any:
    if not start:
        raise FormatError(f"{file}: the file is empty; expected a photo")
    from PIL import Image, UnidentifiedImageError

    formats = [name for name in Image.ID if name not in REFUSED]
    is_heic = start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS
    with suppress(UnidentifiedImageError):  # AVIF has some of HEIC's brands
        handle.seek(0)
        return Image.open(handle, formats=formats)
    if is_heic and "HEIF" not in formats:
        _learn_heic(file)
        with suppress(UnidentifiedImageError):
            handle.seek(0)
            return Image.open(handle, formats=["HEIF"])
    raise FormatError(
        f"{file}: not an image that Pillow reads, or damaged in its header (starts with "
        f"{start[:8]!r}); convert it to JPEG or PNG"
    )


def _learn_heic(file: Path) -> None:
    try:
        heif = import_module("pillow_heif")
    except ImportError:
        raise BackendMissingError(
            f"{file}: HEIC photos need one more library; install it with: pip install pillow-heif, "
            "or convert the photo to JPEG"
        ) from None
    heif.register_heif_opener()


def _check_size(file: Path, image: Any, header: tuple[int, int]) -> None:
    if 0 in header:
        raise FormatError(f"{file}: {header[0]} x {header[1]} pixels: there is nothing in it")
    # libjpeg keeps all coefficients of a progressive JPEG, whatever fraction it decodes.
    progressive = image.info.get("progressive")
    width, height = header if progressive else image.size
    if width * height > MOST_PIXELS or max(header) > MOST_SIDE:
        raise _too_large(file, f"{header[0]} x {header[1]}")


def _too_large(file: Path, size: str) -> FormatError:
    return FormatError(
        f"{file}: {size} pixels are too many to decode; the limit is "
        f"{MOST_PIXELS // 1_000_000} million, and {MOST_SIDE} a side; make it smaller first"
    )


def _has_more(image: Any) -> bool:
    if image.format == "MPO":  # a photo and its preview, or the two of a stereo camera
        return False
    with suppress(Exception):  # a second frame that is damaged does not matter
        return bool(getattr(image, "is_animated", False))
    return False


def _upright(image: Any, shortest_side: int | None) -> tuple[NDArray[np.uint8], bool]:
    """The pixels, and whether width and height changed places."""
    from PIL import Image

    factor, size = 1, image.size
    if shortest_side is not None and min(size) > shortest_side:
        factor = min(max(1, min(size) // (KEPT_FOR_QUALITY * shortest_side)), MOST_COARSE)
        scale = shortest_side / min(size)
        size = tuple(max(shortest_side, round(side * scale)) for side in size)
    orientation = _orientation(image)  # before what follows loses it
    picture = SrgbConversion(image).convert(factor)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    ways = Image.Transpose
    turn = {
        2: ways.FLIP_LEFT_RIGHT, 3: ways.ROTATE_180, 4: ways.FLIP_TOP_BOTTOM, 5: ways.TRANSPOSE,
        6: ways.ROTATE_270, 7: ways.TRANSVERSE, 8: ways.ROTATE_90,
    }.get(orientation)  # fmt: skip
    if turn is not None:
        picture = picture.transpose(turn)
    return np.asarray(picture), orientation >= 5 and turn is not None


def _orientation(image: Any) -> int:
    """Of EXIF or XMP; 1 where it says nothing, or Pillow has turned the picture (TIFF)."""
    with suppress(Exception):  # EXIF is often damaged where the picture is not
        return int(image.getexif().get(ORIENTATION, 1))
    return 1
