"""PlayCanvas' compressed PLY: fields by hand, real files, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import FormatError
from penstock.loaders.splats.compressed_ply import (
    COLOURS,
    PACKED,
    POSITIONS,
    SCALES,
    read_compressed_ply,
)
from penstock.loaders.splats.harmonics import C0
from tests.loaders.splats.splat_builder import ply_bytes, same_rotations, write

CHUNK_COLUMNS = [("float", name) for name in [*POSITIONS, *SCALES, *COLOURS]]
VERTEX_COLUMNS = [("uint", name) for name in PACKED]
BOUNDS = [-1, -2, -3, 1, 2, 3, -6, -5, -4, -2, -2, -2, 0, 0.25, 0.5, 1, 0.75, 0.5]
IDENTITY = 0 << 30 | 512 << 20 | 512 << 10 | 512  # w left out; 512 of 1023 is nearly 0


def word(x: float, y: float, z: float) -> int:
    return round(x * 2047) << 21 | round(y * 1023) << 11 | round(z * 2047)


def colour(*shares: float) -> int:
    r, g, b, a = (round(share * 255) for share in shares)
    return r << 24 | g << 16 | b << 8 | a


def test_fields_lie_between_their_chunks_bounds(tmp_path: Path) -> None:
    rows = [
        (word(0, 0, 0), IDENTITY, word(1, 1, 1), colour(0, 0, 0, 0)),
        (word(1, 1, 1), IDENTITY, word(0, 0, 0), colour(1, 1, 1, 1)),
        (word(0.5, 0.25, 0.75), IDENTITY, word(0.5, 0.5, 0.5), colour(0.4, 0.4, 0.4, 0.4)),
    ]
    data = ply_bytes([("chunk", CHUNK_COLUMNS, [BOUNDS]), ("vertex", VERTEX_COLUMNS, rows)])
    model = read_compressed_ply(write(tmp_path, "a.ply", data))
    assert model.means[:2].tolist() == [[-1, -2, -3], [1, 2, 3]]
    assert np.allclose(model.means[2], [0, -1, 1.5], atol=2e-3)
    assert np.allclose(np.log(model.scales[0]), -2)
    assert np.allclose(np.log(model.scales[1]), [-6, -5, -4])
    assert np.allclose(model.opacities, [0, 1, 0.4])
    assert np.allclose(model.sh[1, 0] * C0 + 0.5, [1, 0.75, 0.5], atol=1e-6)
    assert np.allclose(model.sh[2, 0] * C0 + 0.5, [0.4, 0.45, 0.5], atol=1e-6)
    assert same_rotations(model.rotations, np.array([[1.0, 0, 0, 0]] * 3), 1e-5)


@pytest.mark.parametrize("largest", range(4))
def test_rotations_by_the_component_that_is_left_out(tmp_path: Path, largest: int) -> None:
    q = np.array([0.3, -0.2, 0.1, -0.25])
    q[largest] = 0
    q[largest] = math.sqrt(1 - q @ q)
    packed = largest
    for i in range(4):
        if i != largest:
            packed = packed << 10 | round((q[i] / math.sqrt(2) + 0.5) * 1023)
    row = (0, packed, 0, 0)
    data = ply_bytes([("chunk", CHUNK_COLUMNS, [BOUNDS]), ("vertex", VERTEX_COLUMNS, [row])])
    model = read_compressed_ply(write(tmp_path, "a.ply", data))
    assert np.allclose(model.rotations[0], q, atol=1e-3)


def test_older_files_have_no_bounds_of_colours(tmp_path: Path) -> None:
    row = (0, IDENTITY, 0, colour(1, 0.2, 0, 1))
    data = ply_bytes(
        [("chunk", CHUNK_COLUMNS[:12], [BOUNDS[:12]]), ("vertex", VERTEX_COLUMNS, [row])]
    )
    model = read_compressed_ply(write(tmp_path, "a.ply", data))
    assert np.allclose(model.sh[0, 0] * C0 + 0.5, [1, 0.2, 0], atol=1e-6)


def test_each_chunk_has_256_splats(tmp_path: Path) -> None:
    far = [value + 100 if i < 6 else value for i, value in enumerate(BOUNDS)]
    rows = [(word(0, 0, 0), IDENTITY, 0, 0)] * 300
    data = ply_bytes([("chunk", CHUNK_COLUMNS, [BOUNDS, far]), ("vertex", VERTEX_COLUMNS, rows)])
    model = read_compressed_ply(write(tmp_path, "a.ply", data))
    assert (model.means[:256, 0] == -1).all() and (model.means[256:, 0] == 99).all()


def test_harmonics_are_channel_by_channel(tmp_path: Path) -> None:
    names = [("uchar", f"f_rest_{i}") for i in range(9)]
    data = ply_bytes(
        [
            ("chunk", CHUNK_COLUMNS, [BOUNDS]),
            ("vertex", VERTEX_COLUMNS, [(0, IDENTITY, 0, 0)]),
            ("sh", names, [(0, 255, 128, 127, 1, 2, 3, 4, 5)]),
        ]
    )
    model = read_compressed_ply(write(tmp_path, "a.ply", data))
    assert model.degree == 1
    assert model.sh[0, 1:, 0].tolist() == [-4, 4, (128.5 / 256 - 0.5) * 8]
    assert np.allclose(model.sh[0, 1:, 1], [(v + 0.5) / 32 - 4 for v in (127, 1, 2)])


def test_no_splats(tmp_path: Path) -> None:
    data = ply_bytes([("chunk", CHUNK_COLUMNS, []), ("vertex", VERTEX_COLUMNS, [])])
    assert read_compressed_ply(write(tmp_path, "a.ply", data)).count == 0


def test_bounds_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for i, value in ((0, math.nan), (3, math.inf), (9, math.inf), (12, math.nan)):
        bounds = [*BOUNDS[:i], value, *BOUNDS[i + 1 :]]
        row = (word(0.5, 0.5, 0.5), IDENTITY, word(0.5, 0.5, 0.5), colour(0.5, 0.5, 0.5, 0.5))
        data = ply_bytes([("chunk", CHUNK_COLUMNS, [bounds]), ("vertex", VERTEX_COLUMNS, [row])])
        with pytest.raises(FormatError, match="splat 0"):
            read_compressed_ply(write(tmp_path, "a.ply", data))


def test_counts_and_types_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    row = (0, IDENTITY, 0, 0)
    chunk = ("chunk", CHUNK_COLUMNS, [BOUNDS])
    sh = [("uchar", f"f_rest_{i}") for i in range(9)]
    wrong: list[tuple[list[Any], str]] = [
        ([("chunk", CHUNK_COLUMNS, []), ("vertex", VERTEX_COLUMNS, [row])], "0 chunks for 1"),
        ([("chunk", CHUNK_COLUMNS, [BOUNDS] * 2), ("vertex", VERTEX_COLUMNS, [row])], "2 chunks"),
        ([chunk, ("vertex", [("int", name) for name in PACKED], [row])], "expected uint"),
        ([chunk, ("vertex", VERTEX_COLUMNS, [row]), ("sh", sh, [])], "0 rows for 1"),
        (
            [
                chunk,
                ("vertex", VERTEX_COLUMNS, [row]),
                ("sh", [("float", name) for _, name in sh], [[0.0] * 9]),
            ],
            "expected uchar",
        ),
    ]
    for elements, message in wrong:
        with pytest.raises(FormatError, match=message):
            read_compressed_ply(write(tmp_path, "a.ply", ply_bytes(elements)))


def test_the_biker_is_upright_and_whole(shared_dir: Path) -> None:
    """A real file: 3.2 m high, its wheels on the floor at y = 0, y pointing down."""
    model = read_compressed_ply(shared_dir / "data/splats/biker.compressed.ply")
    assert model.count == 152_746 and model.degree == 0
    assert -3.3 < model.means[:, 1].min() < -3.1 and model.means[:, 1].max() < 0.001
    assert np.abs(model.means[:, [0, 2]]).max() < 0.7
    assert 0.1 < model.opacities.mean() < 1 and model.scales.max() < 0.5
