"""Spacetime Gaussians' PLY, and the lines that stand for its curves."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import FormatError, UnsupportedModelError, UsageError
from penstock.loaders.splats.harmonics import C0
from penstock.loaders.splats.model import SEEN_SIGMAS
from penstock.loaders.splats.ply_file import read_ply_header
from penstock.loaders.splats.spacetime_ply import read_spacetime_ply, spacetime_of_ply
from penstock.loaders.splats.straight_motion import fit_lines
from tests.loaders.splats.splat_builder import inria_columns, inria_row, ply_bytes, write

EXTRA = ["trbf_center", "trbf_scale"]
EXTRA += [f"motion_{i}" for i in range(9)] + [f"omega_{i}" for i in range(4)]
COLUMNS = inria_columns() + [("float", name) for name in EXTRA]


def row(
    center: float = 0.5,
    scale: float = -3.0,
    motion: list[float] | None = None,
    omega: list[float] | None = None,
    **changed: float,
) -> list[float]:
    return [*inria_row(**changed), center, scale, *(motion or [0.0] * 9), *(omega or [0.0] * 4)]


def spacetime(tmp_path: Path, *rows: list[float], columns: list[tuple[str, str]] = COLUMNS) -> Path:
    return write(tmp_path, "a.ply", ply_bytes([("vertex", columns, rows)]))


def test_conventions(tmp_path: Path) -> None:
    path = spacetime(
        tmp_path, row(0.25, -2, [1, 2, 3, 0, 0, 0, 0, 0, 0], x=4, f_dc_0=0.75, f_dc_1=0.5)
    )
    model = read_spacetime_ply(path, seconds=2.0)
    assert model.motion is not None and model.degree == 0
    assert np.allclose(model.motion.t_centers, 0.5)
    assert np.allclose(model.motion.velocities, [[0.5, 1, 1.5]])
    assert np.allclose(model.means, [[4, 0, 0]])
    assert np.allclose(model.sh[0, 0] * C0 + 0.5, [0.75, 0.5, 0], atol=1e-6)
    # the weight at a time, by the format's own formula
    dt = 0.1
    weight = math.exp(-((dt / math.exp(-2)) ** 2))
    ours = math.exp(-0.5 * (2 * dt / float(model.motion.t_sigmas[0])) ** 2)
    assert math.isclose(weight, ours, rel_tol=1e-5)
    assert (model.motion.start, model.motion.end) == (0, 2)


def test_turning_is_left_out_and_told(tmp_path: Path) -> None:
    path = spacetime(tmp_path, row(omega=[0.0, 1.0, 0, 0], scale=-3))
    found = spacetime_of_ply(read_ply_header(path))
    assert np.allclose(found.model.rotations, [[1, 0, 0, 0]])
    reach = SEEN_SIGMAS * math.exp(-3) / math.sqrt(2)
    assert math.isclose(found.degrees, 2 * math.degrees(math.atan(reach)), rel_tol=1e-2)
    assert found.distance == 0


def test_full_models_are_refused(tmp_path: Path) -> None:
    columns = [*COLUMNS, ("float", "f_t_0")]
    with pytest.raises(UnsupportedModelError, match="network"):
        read_spacetime_ply(spacetime(tmp_path, [*row(), 0.0], columns=columns))


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_clip_takes_time(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(UsageError, match="over 0"):
        read_spacetime_ply(spacetime(tmp_path, row()), seconds)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (row(center=math.nan), "."),
        (row(scale=100), "."),
        (row(scale=-200), "t_sigmas of splat 0"),
        (row(motion=[math.inf] + [0.0] * 8), "velocities of splat 0"),
    ],
)
def test_values_that_cannot_be_drawn_are_refused(
    tmp_path: Path, bad: list[float], field: str
) -> None:
    with pytest.raises(FormatError, match=field):
        read_spacetime_ply(spacetime(tmp_path, bad))


def test_no_splats(tmp_path: Path) -> None:
    found = spacetime_of_ply(read_ply_header(spacetime(tmp_path)))
    assert found.model.count == 0 and found.distance == found.degrees == 0


@given(
    center=st.floats(0, 1),
    sigma=st.floats(0.01, 5),
    quadratic=st.floats(-3, 3),
    cubic=st.floats(-3, 3),
)
def test_lines_are_nearer_than_tangents(
    center: float, sigma: float, quadratic: float, cubic: float
) -> None:
    a, b = np.array([[quadratic, 0, 0]]), np.array([[cubic, 0, 0]])
    line = fit_lines(np.array([center]), np.array([sigma]), a, b, 0.0, 1.0)
    first = max(-SEEN_SIGMAS * sigma, -center)
    last = min(SEEN_SIGMAS * sigma, 1 - center)
    dt = np.linspace(first, last, 2001)
    weights = np.exp(-0.5 * (dt / sigma) ** 2)
    curve = quadratic * dt**2 + cubic * dt**3
    fitted = line.offsets[0, 0] + line.velocities[0, 0] * dt
    ours = np.sum(weights * (curve - fitted) ** 2)
    # numpy's own fit is the least there is
    best = np.polynomial.polynomial.polyfit(dt, curve, 1, w=np.sqrt(weights))
    least = np.sum(weights * (curve - best[0] - best[1] * dt) ** 2)
    assert ours <= 1.05 * least + 1e-6
    assert ours <= np.sum(weights * curve**2) * 1.001 + 1e-6
    assert np.abs(curve - fitted).max() <= 1.5 * line.errors[0] + 1e-5
    assert not line.offsets[0, 1:].any() and not line.velocities[0, 1:].any()


def test_a_splat_outside_the_scene_has_a_line_too() -> None:
    ones = np.ones((1, 3))
    line = fit_lines(np.array([50.0]), np.array([0.1]), ones, ones * 0, 0.0, 1.0)
    assert np.isfinite(line.offsets).all() and np.isfinite(line.velocities).all()
