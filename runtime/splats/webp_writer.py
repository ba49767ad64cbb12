"""Animated WebP, a frame at a time: Pillow compresses each, the container is written here.

Pillow's own writer holds every frame until the last has come. The container: RFC 9649, section 2.
"""

from __future__ import annotations

import io
import struct
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, PenstockError
from penstock.runtime.splats.changes import changed_box

MOST_SIDE = 16383  # pixels, of the format
EFFORT = 4  # of libwebp's 0 to 6
ANIMATED = 0x02  # flag of VP8X
REPLACE = 0x02  # flag of ANMF: the rectangle is not blended with what is there


class WebpWriter:
    """Writes one picture, or an animation that repeats for ever.

    Args:
        handle: open for writing in binary, at its start; it can seek.
        width, height: pixels, to `MOST_SIDE`.
        frames: how many `add` will bring.
        fps: frames a second; each is shown for whole milliseconds, which add up rightly.
        quality: 0 to 100 of lossy compression; 100 loses nothing.

    Raises:
        BackendMissingError: Pillow is not installed, or without WebP.
    """

    def __init__(
        self, handle: IO[bytes], width: int, height: int, frames: int, fps: float, quality: int
    ) -> None:
        self._image = _pillow()
        self._handle = handle
        self._animated = frames > 1
        self._fps = fps
        self._quality = quality
        self._number = 0
        self._before: NDArray[np.uint8] | None = None
        handle.write(b"RIFF\0\0\0\0WEBP")  # the size comes at the end
        if self._animated:
            self._chunk(b"VP8X", struct.pack("<B3x", ANIMATED) + _u24(width - 1) + _u24(height - 1))
            self._chunk(b"ANIM", struct.pack("<IH", 0xFF000000, 0))  # black behind; for ever

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """The next frame [height, width, 3]."""
        if not self._animated:
            self._handle.write(self._compressed(pixels))
            return
        x0, y0, x1, y1 = changed_box(self._before, pixels, step=2)  # places are stored halved
        begin, end = (round(n * 1000 / self._fps) for n in (self._number, self._number + 1))
        head = b"".join(
            _u24(value) for value in (x0 // 2, y0 // 2, x1 - x0 - 1, y1 - y0 - 1, end - begin)
        )
        part = self._compressed(pixels[y0:y1, x0:x1])
        self._chunk(b"ANMF", head + bytes([REPLACE]) + part)
        if self._before is None:
            self._before = pixels.copy()
        else:
            self._before[...] = pixels
        self._number += 1

    def close(self) -> None:
        """Write the file's size where it belongs."""
        end = self._handle.tell()
        if end - 8 >= 1 << 32:
            raise PenstockError(
                f"the animation has {end} bytes, over WebP's 4 GiB; write .mp4, or fewer frames"
            )
        self._handle.seek(4)
        self._handle.write(struct.pack("<I", end - 8))
        self._handle.seek(end)

    def _compressed(self, pixels: NDArray[np.uint8]) -> bytes:
        """One chunk, VP8 or VP8L, with its header and padding."""
        out = io.BytesIO()
        picture = self._image.fromarray(np.ascontiguousarray(pixels))
        lossless = self._quality == 100
        picture.save(out, "WEBP", quality=self._quality, lossless=lossless, method=EFFORT)
        data = out.getvalue()
        if data[12:16] not in (b"VP8 ", b"VP8L"):
            raise PenstockError(f"Pillow wrote WebP with a chunk {data[12:16]!r}; VP8 was expected")
        return data[12:]

    def _chunk(self, kind: bytes, data: bytes) -> None:
        pad = b"\0" * (len(data) % 2)
        self._handle.write(kind + struct.pack("<I", len(data)) + data + pad)


def _u24(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _pillow() -> Any:
    try:
        from PIL import Image, features
    except ImportError as error:
        raise BackendMissingError(
            f"WebP is written by Pillow, which is not installed ({error}); install it with: "
            "pip install 'penstock[splats]', or write .png, .apng or .mp4"
        ) from None
    if not features.check("webp"):
        raise BackendMissingError(
            "this Pillow was built without WebP; pip install --force-reinstall pillow brings one "
            "with it; or write .png, .apng or .mp4"
        )
    return Image
