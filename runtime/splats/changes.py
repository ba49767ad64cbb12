"""What changed from one frame of an animation to the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def changed_box(
    before: NDArray[np.uint8] | None, after: NDArray[np.uint8], step: int = 1
) -> tuple[int, int, int, int]:
    """The smallest rectangle (x0, y0, x1, y1) outside which two pictures [h, w, 3] are equal.

    Args:
        before: None: nothing, so that all of `after` is new.
        step: x0 and y0 are multiples of it.

    Returns:
        x0 < x1 and y0 < y1, also where nothing changed: then the first pixel's.
    """
    height, width = after.shape[:2]
    if before is None:
        return 0, 0, width, height
    differs = (before != after).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return 0, 0, 1, 1
    x0, y0 = int(columns[0]) // step * step, int(rows[0]) // step * step
    return x0, y0, int(columns[-1]) + 1, int(rows[-1]) + 1
