"""PNG and animated PNG, a frame at a time, with nothing but zlib (PNG third edition, W3C 2025)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import IO

import numpy as np
from numpy.typing import NDArray

from penstock.runtime.splats.changes import changed_box

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEVEL = 6  # of zlib
RGB, DEPTH = 2, 8  # colour type and bits a sample
BANDS, MOST_ROWS = 32, 64  # of a picture, filtered at a time: 70 bytes a pixel for a while


class PngWriter:
    """Writes one picture, or an animation that repeats for ever.

    Of later frames only the rectangle that changed is written.

    Args:
        handle: open for writing in binary, at its start.
        width, height: pixels.
        frames: how many `add` will bring; the header says it.
        fps: frames a second, 1 or more.
    """

    def __init__(self, handle: IO[bytes], width: int, height: int, frames: int, fps: float) -> None:
        self._handle = handle
        self._animated = frames > 1
        self._delay = Fraction(1 / fps).limit_denominator(65535)  # two 16-bit numbers
        self._sequence = 0
        self._before: NDArray[np.uint8] | None = None
        handle.write(SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, DEPTH, RGB, 0, 0, 0))
        if self._animated:
            self._chunk(b"acTL", struct.pack(">II", frames, 0))

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """The next frame [height, width, 3]."""
        x0, y0, x1, y1 = changed_box(self._before, pixels)
        if self._animated:
            delay = (self._delay.numerator, self._delay.denominator)
            area = (x1 - x0, y1 - y0, x0, y0)
            # Neither cleared afterwards nor blended: what lies outside the rectangle stays.
            control = struct.pack(">IIIIIHHBB", self._next(), *area, *delay, 0, 0)
            self._chunk(b"fcTL", control)
        data = compressed(pixels[y0:y1, x0:x1])
        if self._before is None:
            self._chunk(b"IDAT", data)
        else:
            self._chunk(b"fdAT", struct.pack(">I", self._next()), data)
        if not self._animated:
            self._before = pixels
        elif self._before is None:
            self._before = pixels.copy()
        else:
            self._before[...] = pixels

    def close(self) -> None:
        """Write the end."""
        self._chunk(b"IEND", b"")

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def _chunk(self, kind: bytes, *parts: bytes | bytearray) -> None:
        self._handle.write(struct.pack(">I", sum(map(len, parts))) + kind)
        checksum = zlib.crc32(kind)
        for part in parts:
            self._handle.write(part)
            checksum = zlib.crc32(part, checksum)
        self._handle.write(struct.pack(">I", checksum))


def compressed(pixels: NDArray[np.uint8]) -> bytearray:
    """Rows [h, w, 3] as a PNG chunk has them."""
    stream, data = zlib.compressobj(LEVEL), bytearray()
    for band in filtered(pixels):
        data += stream.compress(band)
    data += stream.flush()
    return data


def filtered(pixels: NDArray[np.uint8]) -> Iterator[bytes]:
    """Rows [h, w, 3] as PNG compresses them, some at a time: each after the filter whose output is
    smallest.

    Smallest is the sum of absolute values, as signed bytes: the standard's own advice.
    """
    height = len(pixels)
    step = min(max(1, height // BANDS), MOST_ROWS)
    for begin in range(0, height, step):
        yield _filtered(pixels[begin : begin + step], pixels[begin - 1] if begin else None)


def _filtered(pixels: NDArray[np.uint8], before: NDArray[np.uint8] | None) -> bytes:
    """Some rows, under the row before them; None: they are the first."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, width * 3)
    left = np.zeros_like(rows)
    left[:, 3:] = rows[:, :-3]
    above = np.empty_like(rows)
    above[1:] = rows[:-1]
    above[0] = 0 if before is None else before.ravel()
    corner = np.zeros_like(rows)
    corner[:, 3:] = above[:, :-3]
    # Bytes wrap around, as the standard asks.
    choices = {0: rows, 1: rows - left, 2: rows - above, 4: rows - _paeth(left, above, corner)}
    costs = [np.abs(c.view(np.int8).astype(np.int16)).sum(axis=1) for c in choices.values()]
    best = np.argmin(costs, axis=0)  # [h]
    out = np.empty((height, 1 + width * 3), np.uint8)
    out[:, 0] = np.array(list(choices), np.uint8)[best]
    for number, choice in enumerate(choices.values()):
        taken = best == number
        out[taken, 1:] = choice[taken]
    return out.tobytes()


def _paeth(
    left: NDArray[np.uint8], above: NDArray[np.uint8], corner: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Of the three neighbours the one nearest to left + above - corner; ties in that order."""
    a, b, c = (side.astype(np.int16) for side in (left, above, corner))
    to_left, to_above, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    near_left = (to_left <= to_above) & (to_left <= to_corner)
    return np.where(near_left, left, np.where(to_above <= to_corner, above, corner))
