""".splat: its 32 bytes, and sizes that are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import FormatError
from penstock.loaders.splats.dot_splat import BLOCK, count_dot_splat, read_dot_splat
from penstock.loaders.splats.harmonics import C0
from tests.loaders.splats.splat_builder import write


def record(x: float = 1, scale: float = 0.5, rotation: bytes = b"\xff\x80\x80\x80") -> bytes:
    head = struct.pack("<6f", x, -2, 3, scale, 0.25, 0.125)
    return head + bytes([255, 51, 0, 102]) + rotation


def test_a_record(tmp_path: Path) -> None:
    rotations = bytes([128, 0, 128, 128])
    model = read_dot_splat(write(tmp_path, "a.splat", record() + record(2, rotation=rotations)))
    assert model.means.tolist() == [[1, -2, 3], [2, -2, 3]]
    assert model.scales[0].tolist() == [0.5, 0.25, 0.125]
    assert np.allclose(model.opacities, 0.4)
    assert np.allclose(model.sh[0, 0] * C0 + 0.5, [1, 0.2, 0], atol=1e-6)
    assert np.allclose(model.rotations, [[1, 0, 0, 0], [0, -1, 0, 0]])


def test_none_and_more_than_a_block(tmp_path: Path) -> None:
    assert read_dot_splat(write(tmp_path, "a.splat", b"")).count == 0
    path = write(tmp_path, "b.splat", record() * BLOCK + record(7))
    assert count_dot_splat(path) == BLOCK + 1 and read_dot_splat(path).means[-1, 0] == 7


@pytest.mark.parametrize("size", [1, 31, 33])
def test_sizes_that_are_no_multiple_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(FormatError, match=f"has {size} bytes"):
        read_dot_splat(write(tmp_path, "a.splat", b"\1" * size))


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (record(x=float("nan")), "means"),
        (record(scale=float("inf")), "scales"),
        (record(scale=-1), "scales"),
        (record(rotation=b"\x80" * 4), "rotations"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, bad: bytes, field: str) -> None:
    with pytest.raises(FormatError, match=f"{field} of splat 1"):
        read_dot_splat(write(tmp_path, "a.splat", record() + bad))
