"""Cameras: where points fall, orbits, and files of cameras, good and bad."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.loaders.splats.model import select
from penstock.runtime.splats.camera import (
    Camera,
    extent,
    from_transforms,
    look_at,
    orbit,
    orbit_around,
)
from tests.runtime.splats.scenes import random_model

numbers = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))
points = st.tuples(numbers, numbers, numbers)


def pixel(camera: Camera, point: Any) -> tuple[float, float, float]:
    """Where a point of the world falls, and its depth."""
    x, y, z = camera.rotation @ np.asarray(point, np.float64) + camera.translation
    return camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy, float(z)


def test_look_at() -> None:
    camera = look_at((0, 0, -3), (0, 0, 0), width=640, height=480, fov_degrees=90)
    np.testing.assert_allclose(camera.rotation, np.eye(3), atol=1e-15)
    np.testing.assert_allclose(camera.eye, (0, 0, -3))
    assert (camera.fx, camera.cx, camera.cy) == pytest.approx((320, 320, 240))
    assert pixel(camera, (3, 0, 0)) == pytest.approx((640, 240, 3))  # x is right
    assert pixel(camera, (0, 1, 0))[1] > 240  # y is down


@given(eye=points, target=points, up=points)
def test_look_at_anything(
    eye: tuple[float, ...], target: tuple[float, ...], up: tuple[float, ...]
) -> None:
    if math.dist(eye, target) < 1e-3:
        return
    camera = look_at(eye, target, up=up, width=100, height=80)
    across, down, depth = pixel(camera, target)
    assert depth == pytest.approx(math.dist(eye, target), rel=1e-6)
    assert (across, down) == pytest.approx((50, 40), abs=1e-3)
    assert np.linalg.det(camera.rotation) == pytest.approx(1)


def test_orbit() -> None:
    cameras = orbit_around((1, 2, 3), 2.0, 4, width=300, height=200, elevation_degrees=0)
    assert len(cameras) == 4
    np.testing.assert_allclose(cameras[0].rotation, np.eye(3), atol=1e-15)
    distance = float(np.linalg.norm(cameras[0].eye - [1, 2, 3]))
    np.testing.assert_allclose(cameras[0].eye, (1, 2, 3 - distance))
    np.testing.assert_allclose(cameras[1].eye, (1 + distance, 2, 3), atol=1e-12)
    np.testing.assert_allclose(cameras[1].rotation[2], (-1, 0, 0), atol=1e-15)  # 90: along -x
    for camera in cameras:
        assert pixel(camera, (1, 2, 3)) == pytest.approx((150, 100, distance))
    # The ball touches the narrower side of the picture.
    edge = math.asin(2 / distance)
    assert cameras[0].fy * math.tan(edge) == pytest.approx(100)
    above = orbit_around((0, 0, 0), 1.0, 1, width=8, height=8, elevation_degrees=90, distance=5)[0]
    np.testing.assert_allclose(above.eye, (0, -5, 0), atol=1e-12)
    assert above.near == 0.2
    assert orbit_around((0, 0, 0), 0.01, 1, width=8, height=8)[0].near < 0.002


def test_orbit_of_a_model() -> None:
    model = random_model(500)
    centre, radius = extent(model)
    assert 0.5 < radius < 1
    camera = orbit(model, 3, width=64, height=48)[0]
    assert pixel(camera, centre)[:2] == pytest.approx((32, 24))
    empty, one = extent(select(model, slice(0, 0)))
    assert (empty.tolist(), one) == ([0, 0, 0], 1.0)
    single = extent(select(model, slice(0, 1)))
    assert single[1] == 1e-3


def test_an_object_is_seen_whole_and_its_sky_does_not_make_it_small() -> None:
    rng = np.random.default_rng(2)
    pole = np.zeros((1000, 3), np.float32)
    pole[:, 1] = rng.uniform(-1, 1, 1000)
    assert extent(replace(random_model(1000), means=pole))[1] > 0.98
    camera = orbit(replace(random_model(1000), means=pole), 1, width=640, height=480)[0]
    rows = np.array([pixel(camera, mean)[1] for mean in pole])
    assert ((rows > 0) & (rows < 480)).mean() > 0.99
    sky = pole.copy()
    sky[:50] += 300
    assert extent(replace(random_model(1000), means=sky))[1] < 1.5


@pytest.mark.parametrize(
    "arguments",
    [
        {"frames": 0},
        {"frames": 10**9},
        {"width": 0},
        {"height": 20_000},
        {"fov_degrees": 180.0},
        {"fov_degrees": math.nan},
        {"azimuth_degrees": math.inf},
        {"elevation_degrees": 91.0},
        {"distance": 0.0},
        {"distance": math.nan},
    ],
)
def test_orbits_that_cannot_be(arguments: dict[str, Any]) -> None:
    given = {"frames": 1, "width": 10, "height": 10} | arguments
    with pytest.raises(UsageError):
        orbit_around((0, 0, 0), 1.0, **given)


@pytest.mark.parametrize(
    "change",
    [
        {"rotation": np.eye(3) * 2},
        {"rotation": np.diag([1.0, 1.0, -1.0])},
        {"rotation": np.full((3, 3), np.nan)},
        {"rotation": np.eye(4)},
        {"translation": np.array([0, np.inf, 0])},
        {"fx": 0.0},
        {"fy": math.nan},
        {"cx": math.inf},
        {"near": 0.0},
        {"width": 0},
        {"height": 16385},
    ],
)
def test_cameras_that_cannot_be(change: dict[str, Any]) -> None:
    camera = look_at((0, 0, -1), (0, 0, 0), width=10, height=10)
    with pytest.raises(UsageError):
        replace(camera, **change)


def test_a_camera_looks_somewhere() -> None:
    with pytest.raises(UsageError, match="cannot look"):
        look_at((1, 1, 1), (1, 1, 1), width=10, height=10)


# ---------------------------------------------------------------- files


def matrix_of(camera: Camera) -> list[list[float]]:
    """As such files have it: camera to world, y up, z backward."""
    pose = np.eye(4)
    pose[:3, :3] = camera.rotation.T * np.array([1, -1, -1])
    pose[:3, 3] = camera.eye
    return [[float(value) for value in row] for row in pose]


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def good(**more: Any) -> dict[str, Any]:
    camera = look_at((1, -2, -3), (0, 0, 1), width=64, height=48)
    frame = {"transform_matrix": matrix_of(camera), "time": 0.5}
    return {"camera_angle_x": 0.8, "w": 64, "h": 48, "frames": [frame]} | more


def test_transforms(tmp_path: Path) -> None:
    camera = look_at((1, -2, -3), (0, 0, 1), width=64, height=48)
    data = good()
    data["frames"].append({"transform_matrix": matrix_of(camera), "fl_x": 70, "fl_y": 80, "cx": 30})
    first, second = from_transforms(write(tmp_path / "transforms.json", data))
    np.testing.assert_allclose(first.camera.rotation, camera.rotation, atol=1e-12)
    np.testing.assert_allclose(first.camera.eye, camera.eye, atol=1e-12)
    assert first.camera.fx == pytest.approx(32 / math.tan(0.4)) == first.camera.fy
    assert (first.time, first.image, second.time) == (0.5, None, None)
    assert (second.camera.fx, second.camera.fy) == (70, 80)
    assert (second.camera.cx, second.camera.cy) == (30, 24)


def test_sizes_are_those_of_the_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "train").mkdir()
    image.new("RGB", (37, 21)).save(tmp_path / "train" / "r_0.png")
    data = good()
    del data["w"], data["h"]
    data["frames"][0]["file_path"] = "./train/r_0"  # as Blender's exporter writes it
    view = from_transforms(write(tmp_path / "t.json", data))[0]
    assert (view.camera.width, view.camera.height) == (37, 21)
    assert view.image == tmp_path / "train" / "r_0.png"
    (tmp_path / "train" / "r_0.png").write_bytes(b"no image")
    with pytest.raises(FormatError, match="r_0.png: is not an image"):
        from_transforms(tmp_path / "t.json")
    (tmp_path / "train" / "r_0.png").unlink()
    with pytest.raises(StorageError, match="r_0.png: cannot be read"):
        from_transforms(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ({"transform_matrix": None}, "transform_matrix"),
        ({"transform_matrix": [[1, 2], [3, 4]]}, "transform_matrix"),
        ({"transform_matrix": [[0] * 4] * 4}, "transform_matrix"),
        ({"transform_matrix": [[10**400] * 4] * 4}, "transform_matrix"),
        ({"transform_matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]}, "transform_matrix"),
        ({"transform_matrix": "none"}, "transform_matrix"),
        ({"w": 0}, "w"),
        ({"w": 1.5}, "w"),
        ({"w": True}, "w"),
        ({"h": 1e9}, "h"),
        ({"h": None}, "w"),
        ({"fl_x": -1}, "fl_x"),
        ({"fl_x": 10**400}, "fl_x"),
        ({"camera_angle_x": 4}, "camera_angle_x"),
        ({"camera_angle_x": None}, "camera_angle_x"),
        ({"k1": 0.1}, "k1"),
        ({"time": math.nan}, "time"),
        ({"cx": "left"}, "cx"),
        ({"file_path": "../../etc/passwd"}, "file_path"),
        ({"file_path": "/etc/passwd"}, "file_path"),
        ({"file_path": 7}, "file_path"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, frame: dict[str, Any], field: str) -> None:
    data = good()
    data["frames"][0] |= frame
    with pytest.raises(FormatError, match=f"frame 0, field '{field}'"):
        from_transforms(write(tmp_path / "t.json", data))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"frames": []}', '{"frames": 3}', "[" * 100_000, "\xff"]
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match="t.json"):
        from_transforms(path)
    with pytest.raises(StorageError, match="nowhere.json"):
        from_transforms(tmp_path / "nowhere.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
fields = st.sampled_from(
    ["transform_matrix", "w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "k1", "time"]
)


@given(changes=st.dictionaries(fields, json_values, max_size=3), whole=json_values)
def test_any_json(tmp_path_factory: pytest.TempPathFactory, changes: Any, whole: Any) -> None:
    """Read, or refused by name; nothing else."""
    path = tmp_path_factory.getbasetemp() / "any.json"
    data = good()
    data["frames"][0] |= changes
    for content in (data, data | {"frames": whole}, whole):
        try:
            views = from_transforms(write(path, content))
        except PenstockError as error:
            assert "any.json" in str(error)
        else:
            assert all(isinstance(view.camera, Camera) for view in views)


def test_rotations_are_made_orthonormal(tmp_path: Path) -> None:
    data = good()
    pose: NDArray[np.float64] = np.array(data["frames"][0]["transform_matrix"])
    pose[:3, :3] *= 1.01  # as rounded files have it
    data["frames"][0]["transform_matrix"] = pose.tolist()
    view = from_transforms(write(tmp_path / "t.json", data))[0]
    np.testing.assert_allclose(view.camera.rotation @ view.camera.rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(view.camera.eye, pose[:3, 3], atol=1e-12)
