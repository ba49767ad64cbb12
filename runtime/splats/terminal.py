"""Pictures in a terminal: each character is two pixels, one over the other, in 24-bit colours."""

from __future__ import annotations

from types import TracebackType
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from penstock.runtime.splats.images import to_pixels

UPPER_HALF = "\N{UPPER HALF BLOCK}"  # its colour is the upper pixel, its ground the lower one
HIDE, SHOW, HOME, CLEAR = "\x1b[?25l", "\x1b[?25h", "\x1b[H", "\x1b[2J"
PLAIN = "\x1b[0m"


class Screen:
    """A terminal as a picture. While it is entered, the cursor is hidden.

    Args:
        out: the terminal.
        columns, lines: characters; the last line stays free.
    """

    def __init__(self, out: TextIO, columns: int, lines: int) -> None:
        self._out = out
        self.width, self.height = columns, 2 * (lines - 1)

    def show(self, image: NDArray[np.float32]) -> None:
        """Draw an image [h, w, 3] in 0..1 over what is there."""
        self._out.write(HOME + self.text(image))
        self._out.flush()

    def text(self, image: NDArray[np.float32]) -> str:
        """The picture's characters: as large as fits, in its shape."""
        height, width = image.shape[:2]
        scale = min(self.width / width, self.height / height)
        columns = max(1, int(width * scale))
        rows = max(2, int(height * scale) // 2 * 2)
        pixels = to_pixels(shrunk(image, rows, columns))
        lines = []
        for upper, lower in zip(pixels[0::2].tolist(), pixels[1::2].tolist(), strict=True):
            line, before = [], ""
            for (r, g, b), (red, green, blue) in zip(upper, lower, strict=True):
                colours = f"\x1b[38;2;{r};{g};{b};48;2;{red};{green};{blue}m"
                line.append(UPPER_HALF if colours == before else colours + UPPER_HALF)
                before = colours
            lines.append("".join(line) + PLAIN)
        return "\n".join(lines) + "\n"

    def __enter__(self) -> Screen:
        self._out.write(HIDE + CLEAR)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._out.write(PLAIN + SHOW + "\n")
        self._out.flush()


def shrunk(image: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """An image [h, w, 3] as [rows, columns, 3]: the means of the pixels that fall together; where
    there are fewer than asked for, some come twice."""
    for axis, count in ((0, rows), (1, columns)):
        length = image.shape[axis]
        if count >= length:
            image = image.take(np.arange(count) * length // count, axis)
            continue
        edges = np.arange(count) * length // count
        sums = np.add.reduceat(image, edges, axis)
        widths = np.diff(np.append(edges, length)).astype(np.float32)
        sums /= widths.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = sums
    return image
