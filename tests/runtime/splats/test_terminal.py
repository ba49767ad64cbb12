"""Pictures as coloured half blocks."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest

from penstock.runtime.splats.terminal import CLEAR, HIDE, HOME, PLAIN, SHOW, Screen, shrunk

CELL = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m")


def drawn(text: str) -> list[list[tuple[int, ...]]]:
    """Of each character: red, green and blue above, then below."""
    lines = []
    for line in text.split("\n")[:-1]:
        assert line.endswith(PLAIN)
        cells: list[tuple[int, ...]] = []
        now: tuple[int, ...] = ()
        for code, block in re.findall(r"(\x1b\[[0-9;]*m)|(\u2580)", line.removesuffix(PLAIN)):
            match = CELL.fullmatch(code)
            if block:
                cells.append(now)
            else:
                assert match is not None, code
                now = tuple(map(int, match.groups()))
        lines.append(cells)
    return lines


def test_a_picture_of_just_that_size() -> None:
    image = np.zeros((4, 3, 3), np.float32)
    image[0, 0], image[1, 0], image[3, 2] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    cells = drawn(Screen(io.StringIO(), 3, 3).text(image))
    black = (0, 0, 0)
    assert cells == [
        [(255, 0, 0, 0, 255, 0), black * 2, black * 2],
        [black * 2, black * 2, (*black, 0, 0, 255)],
    ]


@pytest.mark.parametrize("columns, lines", [(80, 24), (200, 60), (10, 40), (2, 3), (300, 5)])
@pytest.mark.parametrize("height, width", [(48, 64), (480, 640), (1, 1), (7, 300)])
def test_it_fits_and_keeps_its_shape(columns: int, lines: int, height: int, width: int) -> None:
    cells = drawn(Screen(io.StringIO(), columns, lines).text(np.ones((height, width, 3), "f4")))
    assert 1 <= len(cells) <= lines - 1 and 1 <= len(cells[0]) <= columns
    assert all(cell == (255,) * 6 for line in cells for cell in line)
    if min(height, width, lines, columns) > 10:
        assert len(cells[0]) / (2 * len(cells)) == pytest.approx(width / height, rel=0.15)


def test_means_of_what_falls_together() -> None:
    image = np.arange(24, dtype=np.float32).reshape(4, 6, 1) * np.ones(3, np.float32)
    assert shrunk(image, 2, 3)[..., 0].tolist() == [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]
    assert shrunk(image, 8, 6)[::2, :, 0].tolist() == image[..., 0].tolist()
    uneven = shrunk(image, 3, 6)[:, 0, 0]  # rows 0, 1 and 2 with 3
    assert uneven.tolist() == [0, 6, 15]


def test_a_terminal_is_left_as_it_was() -> None:
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Screen(out, 4, 3) as screen:
        screen.show(np.zeros((4, 4, 3), np.float32))
        raise KeyboardInterrupt
    text = out.getvalue()
    assert text.startswith(HIDE + CLEAR + HOME) and text.endswith(PLAIN + SHOW + "\n")
