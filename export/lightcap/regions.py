"""Region proposals without a detector: fixed boxes at several scales over the feature grid.

The paper takes boxes from YOLOv5n and stresses that they need not be accurate; that detector is
under the AGPL, so boxes here are the same for every photo. A region's feature is the mean of the
grid's cells in its box.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SCALES = ((1.0, 1), (0.7, 2), (0.45, 3))
"""Side of the box as a share of the grid's, and boxes along each axis."""


def region_boxes(grid: int) -> list[tuple[int, int, int]]:
    """(top, left, side) in cells: the whole photo first, then smaller boxes, evenly spread."""
    boxes = []
    for share, along in SCALES:
        side = max(1, round(share * grid))
        starts = np.unique(np.linspace(0, grid - side, along).round().astype(int))
        boxes += [(int(top), int(left), side) for top in starts for left in starts]
    return boxes


def region_pooling(grid: int) -> NDArray[np.float32]:
    """The matrix [regions, grid * grid] whose product with grid features [cells, channels] is the
    mean of each box."""
    boxes = region_boxes(grid)
    pooling = np.zeros((len(boxes), grid, grid), np.float32)
    for row, (top, left, side) in enumerate(boxes):
        pooling[row, top : top + side, left : left + side] = 1 / side**2
    return pooling.reshape(len(boxes), grid * grid)
