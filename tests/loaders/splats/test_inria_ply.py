"""INRIA's PLY: conventions, round trips, moving splats and their times."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from penstock.errors import FormatError
from penstock.loaders.splats.formats import summary
from penstock.loaders.splats.inria_ply import read_inria_ply, write_inria_ply
from penstock.loaders.splats.model import SplatModel, named_arrays
from tests.loaders.splats.splat_builder import (
    inria_columns,
    inria_row,
    models,
    ply_bytes,
    random_model,
    write,
)
from tests.needs import needs

TIMES = ["sogst.time_min 0.5", "sogst.time_max 2.5", "sogst.fps 25"]
MOVING = [("float", name) for name in ("vx", "vy", "vz", "t_center", "t_sigma")]


def test_conventions(tmp_path: Path) -> None:
    rest = [100.0 * channel + i for channel in range(3) for i in range(15)]
    row = inria_row(
        rest, x=1, y=2, z=3, f_dc_1=0.25, opacity=math.log(3), scale_2=-1, rot_0=0, rot_3=-2
    )
    path = write(tmp_path, "a.ply", ply_bytes([("vertex", inria_columns(45), [row])]))
    model = read_inria_ply(path)
    assert model.count == 1 and model.degree == 3 and not model.dynamic
    assert model.means.tolist() == [[1, 2, 3]]
    assert np.allclose(model.scales, [[math.exp(-3), math.exp(-3), math.exp(-1)]])
    assert np.allclose(model.rotations, [[0, 0, 0, -1]])
    assert np.allclose(model.opacities, [0.75])
    assert model.sh[0, 0].tolist() == [0, 0.25, 0]
    assert model.sh[0, 1].tolist() == [0, 100, 200] and model.sh[0, 15].tolist() == [14, 114, 214]


@given(models)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, model: SplatModel) -> None:
    path = tmp_path / "a.ply"
    write_inria_ply(path, model)
    back = read_inria_ply(path)
    for name, array in named_arrays(model).items():
        exact = name in ("means", "sh", "velocities", "t_centers", "t_sigmas")
        got = named_arrays(back)[name]
        assert np.array_equal(got, array) if exact else np.allclose(got, array, rtol=1e-5)
    if model.motion is not None and back.motion is not None:
        assert (back.motion.start, back.motion.end, back.motion.fps) == (0, 2, 30)


def test_opacities_and_scales_without_logarithm_come_back_near(tmp_path: Path) -> None:
    model = random_model(3)
    model.opacities[:] = [0, 1, 0.5]
    model.scales[0] = 0
    write_inria_ply(tmp_path / "a.ply", model)
    back = read_inria_ply(tmp_path / "a.ply")
    assert np.allclose(back.opacities, model.opacities, atol=2e-7)
    assert (back.scales[0] < 1e-29).all()


def test_accelerations_become_lines(tmp_path: Path) -> None:
    columns = inria_columns() + MOVING + [("float", name) for name in ("ax", "ay", "az")]
    row = [*inria_row(), 1.0, 0, 0, 1.5, 0.2, 0.0, 2.0, 0]
    path = write(tmp_path, "a.ply", ply_bytes([("vertex", columns, [row])], TIMES))
    model = read_inria_ply(path)
    assert model.motion is not None and model.motion.velocities[0, 0] == 1
    # y is 2 dt^2, which is even about t_center: its line is level, at the weighted mean
    assert abs(float(model.motion.velocities[0, 1])) < 1e-6
    assert 0 < model.means[0, 1] < 2 * 0.2**2
    # How far the curve is from that line is said, and that nothing is where none is curved.
    ((name, text),) = summary(path).lost
    assert name == "curves" and "at most" in text and summary(path).to_dict()["lost"][name] == text
    straight = [*inria_row(), 1.0, 0, 0, 1.5, 0.2, 0.0, 0.0, 0]
    again = write(tmp_path, "b.ply", ply_bytes([("vertex", columns, [straight])], TIMES))
    assert summary(again).lost == ()


def test_points_that_are_no_splats_have_no_summary(tmp_path: Path) -> None:
    columns = [("float", name) for name in "xyz"]
    path = write(tmp_path, "a.ply", ply_bytes([("vertex", columns, [[0.0, 1, 2]])]))
    for read in (summary, read_inria_ply):
        with pytest.raises(FormatError, match="no property scale_0"):
            read(path)


def test_times_have_no_default(tmp_path: Path) -> None:
    row = [*inria_row(), 0.0, 0, 0, 1, 0.5]
    columns = inria_columns() + MOVING
    path = write(tmp_path, "a.ply", ply_bytes([("vertex", columns, [row])], TIMES[:1]))
    with pytest.raises(FormatError, match="time_max"):
        read_inria_ply(path)
    path = write(tmp_path, "b.ply", ply_bytes([("vertex", columns, [row])], TIMES[:2]))
    motion = read_inria_ply(path).motion
    assert motion is not None and motion.fps is None and motion.end == 2.5


@pytest.mark.parametrize("rest", [1, 3, 10, 48])
def test_coefficients_of_no_degree_are_refused(tmp_path: Path, rest: int) -> None:
    row = inria_row([0.0] * rest)
    path = write(tmp_path, "a.ply", ply_bytes([("vertex", inria_columns(rest), [row])]))
    with pytest.raises(FormatError, match=f"{rest} columns f_rest"):
        read_inria_ply(path)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"x": math.nan}, "means of splat 1"),
        ({"scale_0": 100.0}, "scales of splat 1"),
        ({"opacity": math.nan}, "opacities of splat 1"),
        ({"rot_0": 0.0}, "rotations of splat 1"),
        ({"rot_1": math.inf}, "rotations of splat 1"),
        ({"f_dc_2": -math.inf}, "sh of splat 1"),
    ],
)
def test_values_that_cannot_be_drawn_are_named(
    tmp_path: Path, changed: dict[str, float], field: str
) -> None:
    rows = [inria_row(), inria_row(**changed)]
    path = write(tmp_path, "a.ply", ply_bytes([("vertex", inria_columns(), rows)]))
    with pytest.raises(FormatError, match=field):
        read_inria_ply(path)


def test_infinite_logits_are_opaque_and_clear(tmp_path: Path) -> None:
    rows = [inria_row(opacity=math.inf), inria_row(opacity=-math.inf)]
    path = write(tmp_path, "a.ply", ply_bytes([("vertex", inria_columns(), rows)]))
    assert read_inria_ply(path).opacities.tolist() == [1, 0]


def test_a_point_cloud_is_refused_by_its_missing_columns(tmp_path: Path) -> None:
    data = ply_bytes([("vertex", [("float", axis) for axis in "xyz"], [(0, 0, 0)])])
    with pytest.raises(FormatError, match="no property scale_0"):
        read_inria_ply(write(tmp_path, "a.ply", data))


@needs("plyfile")
def test_plyfile_finds_the_standard_columns(tmp_path: Path) -> None:
    import plyfile

    model = random_model(7, 2)
    write_inria_ply(tmp_path / "a.ply", model)
    vertex = plyfile.PlyData.read(str(tmp_path / "a.ply"))["vertex"]
    assert np.array_equal(vertex["x"], model.means[:, 0])
    assert np.array_equal(vertex["f_rest_8"], model.sh[:, 1, 1])  # green's first of eight
    assert np.allclose(np.exp(vertex["scale_1"]), model.scales[:, 1], rtol=1e-5)
    assert np.allclose(1 / (1 + np.exp(-vertex["opacity"])), model.opacities, rtol=1e-5)
