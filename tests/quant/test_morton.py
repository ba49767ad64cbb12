"""Morton codes against bits that are moved one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.quant.morton import morton_codes

coordinates = st.integers(0, (1 << 21) - 1)


@given(cells=st.lists(st.tuples(coordinates, coordinates, coordinates), max_size=20))
def test_bits_are_interleaved(cells: list[tuple[int, int, int]]) -> None:
    codes = morton_codes(np.array(cells, np.uint32).reshape(-1, 3))
    for cell, code in zip(cells, codes.tolist(), strict=True):
        expected = 0
        for bit in range(21):
            for axis in range(3):
                expected |= (cell[axis] >> bit & 1) << (3 * bit + axis)
        assert code == expected


def test_the_order_of_the_eight_cells_of_a_cube() -> None:
    cells = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)], np.uint32)
    assert morton_codes(cells).tolist() == list(range(8))
