"""Fixed boxes over the grid, and the means that they take."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.export.lightcap.regions import region_boxes, region_pooling


def test_boxes_of_the_papers_grid() -> None:
    boxes = region_boxes(7)
    assert boxes[0] == (0, 0, 7)
    assert [side for _, _, side in boxes] == [7] + 4 * [5] + 9 * [3]
    assert set(boxes[1:5]) == {(0, 0, 5), (0, 2, 5), (2, 0, 5), (2, 2, 5)}
    assert set(boxes[5:]) == {(t, left, 3) for t in (0, 2, 4) for left in (0, 2, 4)}


@pytest.mark.parametrize("grid", [1, 2, 3, 7, 9, 12])
def test_boxes_lie_in_the_grid_and_leave_no_cell_out(grid: int) -> None:
    covered = np.zeros((grid, grid), int)
    for top, left, side in region_boxes(grid)[1:]:
        assert side >= 1 and 0 <= top <= grid - side and 0 <= left <= grid - side
        covered[top : top + side, left : left + side] += 1
    assert covered.min() >= 1
    assert region_boxes(grid)[0] == (0, 0, grid)


@pytest.mark.parametrize("grid", [2, 7])
def test_pooling_gives_the_mean_of_each_box(grid: int) -> None:
    features = np.random.default_rng(0).normal(size=(grid, grid, 5))
    seen = region_pooling(grid) @ features.reshape(grid * grid, 5)
    for row, (top, left, side) in zip(seen, region_boxes(grid), strict=True):
        total = np.zeros(5)
        for down in range(top, top + side):
            for along in range(left, left + side):
                total += features[down, along]
        np.testing.assert_allclose(row, total / side**2, atol=1e-6)
