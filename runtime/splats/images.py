"""Rendered frames as files: PNG, animated PNG and WebP, MP4; each frame is written as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, UsageError
from penstock.loaders.partial_file import partial_file
from penstock.runtime.splats.png_writer import PngWriter
from penstock.runtime.splats.video_writer import VideoWriter, find_ffmpeg
from penstock.runtime.splats.webp_writer import MOST_SIDE, WebpWriter

KINDS = {".png": "PNG", ".apng": "APNG", ".webp": "WebP", ".mp4": "MP4"}
MOVING = {".apng", ".mp4"}  # by their nature
LEAST_FPS, MOST_FPS = 1.0, 1000.0
QUALITY = 85  # of WebP
ROWS = 64  # of a picture, that are made bytes at a time
# Bytes a pixel that writing a film takes beside two images of 12: the frame before as bytes (3), of
# WebP the room of libwebp 1.6, measured with noise, which takes most; and what an allocator leaves
# unused between arrays that come and go, up to 3 in films of 1600 x 1200.
PIXEL_BYTES = {".png": 9, ".apng": 9, ".webp": 24, ".mp4": 9}
LOSSLESS_PIXEL_BYTES = 64


class PictureWriter(Protocol):
    """Takes a file's frames in their order."""

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """The next frame [height, width, 3]."""
        ...


@contextmanager
def open_pictures(
    out: Path, *, width: int, height: int, frames: int, fps: float, quality: int = QUALITY
) -> Iterator[PictureWriter]:
    """A file of `frames` pictures, whole at the end or not there; its kind is that of its name.

    Args:
        frames: as many must be added.
        fps: frames a second, 1 to 1000.
        quality: of WebP: 0 to 100, which loses nothing.

    Raises:
        UsageError: a name or a number that does not fit.
        BackendMissingError: .webp without Pillow, .mp4 without ffmpeg.
        StorageError: the folder or the device does not take it.
        PenstockError: ffmpeg failed.
    """
    suffix = check_pictures(out, width=width, height=height, frames=frames, fps=fps)
    with partial_file(out) as (handle, temporary):
        writer: PngWriter | WebpWriter | VideoWriter
        if suffix == ".webp":
            writer = WebpWriter(handle, width, height, frames, fps, quality)
        elif suffix == ".mp4":
            writer = VideoWriter(temporary, width, height, fps)
        else:
            writer = PngWriter(handle, width, height, frames, fps)
        counted = _Counted(writer, (height, width, 3))
        try:
            yield counted
            if counted.count != frames:
                raise PenstockError(f"{out}: {counted.count} of {frames} frames were drawn")
            writer.close()
        except BaseException:
            if isinstance(writer, VideoWriter):
                writer.abort()
            raise


def check_pictures(out: Path, *, width: int, height: int, frames: int, fps: float) -> str:
    """Find out before anything is drawn whether the file can be written; its suffix.

    Raises:
        UsageError, BackendMissingError: as `open_pictures`.
    """
    suffix = check_name(out)
    if frames < 1 or not LEAST_FPS <= fps <= MOST_FPS:
        raise UsageError(
            f"{frames} frames at {fps:g} a second; expected 1 or more, at {LEAST_FPS:g} to "
            f"{MOST_FPS:g}"
        )
    if min(width, height) < 1:
        raise UsageError(f"a picture of {width} x {height} pixels; expected 1 or more each way")
    if suffix == ".webp" and max(width, height) > MOST_SIDE:
        raise UsageError(
            f"{width} x {height} pixels; WebP takes {MOST_SIDE} each way: choose .png, or a "
            "smaller --width"
        )
    if suffix == ".mp4":
        find_ffmpeg()
    return suffix


def check_name(out: Path) -> str:
    """The suffix of a name that tells a kind of picture, in lower case.

    Raises:
        UsageError: it tells none.
    """
    suffix = out.suffix.lower()
    if suffix not in KINDS:
        raise UsageError(
            f"{out}: pictures are written as {', '.join(KINDS)}; give the name one of these endings"
        )
    return suffix


def to_pixels(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A rendered image [h, w, 3] in 0..1 as bytes; what is outside is cut, NaN is black."""
    pixels = np.empty(image.shape, np.uint8)
    for begin in range(0, len(image), ROWS):
        part = np.fmax(image[begin : begin + ROWS], np.float32(0))  # fmax(NaN, 0) is 0
        np.fmin(part, np.float32(1), out=part)
        part *= np.float32(255)
        part += np.float32(0.5)
        pixels[begin : begin + ROWS] = part  # cuts the fraction off
    return pixels


def pixel_bytes(out: Path, quality: int = QUALITY) -> int:
    """What `SplatPlayer` is to leave for writing its pictures, bytes a pixel.

    Raises:
        UsageError: the name tells no kind of picture.
    """
    suffix = check_name(out)
    lossless = suffix == ".webp" and quality == 100
    return LOSSLESS_PIXEL_BYTES if lossless else PIXEL_BYTES[suffix]


class _Counted:
    """A writer that takes frames of one shape only, and counts them."""

    def __init__(self, writer: PictureWriter, shape: tuple[int, int, int]) -> None:
        self._writer, self._shape, self.count = writer, shape, 0

    def add(self, pixels: NDArray[np.uint8]) -> None:
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            raise PenstockError(
                f"a frame is {pixels.dtype} {pixels.shape}; expected uint8 {self._shape}"
            )
        self._writer.add(pixels)
        self.count += 1
