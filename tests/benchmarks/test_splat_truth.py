"""The caster of rays: areas, distances, light and thin things, each known by other means."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks import splat_truth, splat_truth_scene, splat_truth_surface
from benchmarks.splat_truth import (
    Box,
    Capsule,
    Floats,
    Floor,
    Light,
    Paint,
    Pinhole,
    Shape,
    Sphere,
    albedo_of,
    cast,
    distances,
    look_at,
    normals_of,
    shade,
)

GREY = Paint((0.5, 0.5, 0.5))
ABOVE = Light(np.array([0.0, -1.0, 0.0]), ambient=0.25, diffuse=0.5)
TURNED = np.array([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 0.8]])
SHAPES: list[Shape] = [
    Sphere(np.array([0.1, 0.2, 0.3]), 0.7, GREY),
    Box(np.array([0.1, -0.1, 0.2]), np.array([0.4, 0.6, 0.5]), TURNED, GREY),
    Capsule(np.array([-0.5, 0.1, 0.2]), np.array([0.6, -0.4, 0.5]), 0.25, GREY),
    Floor(np.array([0.0, 0.5, 0.0]), 1.5, 0.25, Paint((1, 1, 1), other=(0, 0, 0))),
]


def front(side: int = 200, distance: float = 5.0) -> Pinhole:
    return look_at((0, 0, -distance), (0, 0, 0), side, side, 40)


@pytest.mark.parametrize("module", [splat_truth, splat_truth_scene, splat_truth_surface])
def test_it_shares_nothing_with_what_it_judges(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())
    names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not any(name.split(".")[0] in ("penstock", "tests") for name in names)


def test_a_ball_covers_the_disc_that_it_must() -> None:
    camera = front()
    picture = cast([Sphere(np.zeros(3), 1.0, GREY)], ABOVE, camera)
    radius = camera.fx / math.sqrt(5**2 - 1)  # of the cone that touches it
    assert picture.coverage[0].sum() == pytest.approx(math.pi * radius**2, rel=2e-3)
    rows, columns = np.nonzero(picture.coverage[0] > 0.5)
    assert (rows.mean(), columns.mean()) == pytest.approx((99.5, 99.5), abs=0.05)


def test_a_box_covers_its_front() -> None:
    camera = front()
    box = Box(np.array([0.3, -0.2, 1.0]), np.array([0.5, 0.25, 1.0]), np.eye(3), GREY)
    picture = cast([box], ABOVE, camera)
    scale = camera.fx / 5  # its front is at z = 0; the camera stands before it and sees no side
    assert picture.coverage[0].sum() == pytest.approx(1.0 * 0.5 * scale**2, rel=2e-3)
    centre = picture.image[100 - round(0.2 * scale), 100 + round(0.3 * scale)]
    assert centre == pytest.approx(0.5 * 0.25)  # light from above does not reach the front


@pytest.mark.parametrize("shape", SHAPES)
def test_points_that_are_met_lie_on_the_shape(shape: Shape) -> None:
    draw = np.random.default_rng(2)
    eye = np.array([0.4, -2.5, -3.0])
    rays = np.array([0, 0.2, 0]) + draw.normal(size=(4000, 3)) - eye
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    far = distances(shape, eye, rays)
    met = np.isfinite(far)
    assert met.mean() > 0.03
    points = eye + far[met, None] * rays[met]
    assert np.abs(outside(shape, points)).max() < 1e-7
    normals = normals_of(shape, points)
    assert np.linalg.norm(normals, axis=1) == pytest.approx(np.ones(len(points)))
    assert (np.einsum("ni,ni->n", normals, rays[met]) < 1e-9).all()  # the side that is seen
    if not isinstance(shape, Floor):
        assert outside(shape, points + 1e-4 * normals) == pytest.approx(1e-4, rel=0.05)
    # Before what was met there is nothing, and along rays that miss nothing at all.
    for share in (0.2, 0.5, 0.9, 0.999):
        assert (outside(shape, eye + share * far[met, None] * rays[met]) > 0).all()
    for along in np.linspace(0.5, 8, 40):
        assert (outside(shape, eye + along * rays[~met]) > 0).all()


def outside(shape: Shape, points: Floats) -> Floats:
    """How far points [n, 3] are outside of a shape (for a box: at most), by another way."""
    if isinstance(shape, Sphere):
        return np.asarray(np.linalg.norm(points - shape.centre, axis=1) - shape.radius)
    if isinstance(shape, Box):
        over = np.abs((points - shape.centre) @ shape.axes) - shape.half
        return np.asarray(over.max(axis=1))
    if isinstance(shape, Capsule):
        axis = shape.other - shape.one
        along = np.clip((points - shape.one) @ axis / (axis @ axis), 0, 1)
        away = points - shape.one - np.outer(along, axis)
        return np.asarray(np.linalg.norm(away, axis=1) - shape.radius)
    assert isinstance(shape, Floor)
    over = np.abs(points[:, 1] - shape.centre[1])
    return np.asarray(np.maximum(over, np.linalg.norm(points[:, [0, 2]], axis=1) - shape.radius))


def test_light() -> None:
    up, side = np.array([[0.0, -1, 0]]), np.array([[1.0, 0, 0]])
    point, white = np.zeros((1, 3)), np.ones((1, 3))
    eye = np.array([0.0, -5, 0])
    assert shade(point, up, white, GREY, ABOVE, eye) == pytest.approx(0.75)
    assert shade(point, side, white, GREY, ABOVE, eye) == pytest.approx(0.25)
    shiny = Paint((1, 1, 1), shine=0.2, sharpness=10)
    assert shade(point, up, white, shiny, ABOVE, eye) == pytest.approx(0.95)
    tilted = 5 * np.array([math.sin(0.3), -math.cos(0.3), 0])
    wanted = 0.75 + 0.2 * math.cos(0.3) ** 10
    assert shade(point, up, white, shiny, ABOVE, tilted) == pytest.approx(wanted)
    assert shade(point, -up, white, shiny, ABOVE, -eye) == pytest.approx(0.25)  # no light, no shine


def test_squares_of_the_floor() -> None:
    floor = SHAPES[3]
    places = [[0.1, 0.5, 0.1], [0.3, 0.5, 0.1], [-0.1, 0.5, 0.1], [-0.1, 0.5, -0.1]]
    assert albedo_of(floor, np.array(places))[:, 0].tolist() == [1, 0, 0, 1]


def test_what_is_nearer_is_seen() -> None:
    near = Sphere(np.array([0.0, 0, -1]), 0.3, Paint((1, 0, 0)))
    far = Sphere(np.array([0.0, 0, 1]), 1.0, Paint((0, 1, 0)))
    for shapes in ([near, far], [far, near]):
        middle = cast(shapes, ABOVE, front(50)).image[25, 25]
        assert middle[0] > 0 and middle[1] == 0


@pytest.mark.parametrize("radius", [0.002, 0.01, 0.05])
def test_what_is_thinner_than_a_pixel_is_not_lost(radius: float) -> None:
    camera = front(101)
    rod = Capsule(np.array([-0.5, 0.313, 0]), np.array([0.5, 0.271, 0]), radius, GREY)
    picture = cast([rod], ABOVE, camera)
    length = np.linalg.norm(rod.other - rod.one)
    area = (2 * radius * length + math.pi * radius**2) * (camera.fx / 5) ** 2
    assert picture.coverage[0].sum() == pytest.approx(area, rel=0.25)


def test_one_ray_where_nothing_changes_is_as_good_as_sixteen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes, _ = splat_truth_scene.shapes_at(0.7)
    camera = splat_truth_scene.cameras(80, 60)["test"][0]
    quick = cast(shapes, splat_truth_scene.LIGHT, camera)
    monkeypatch.setattr(splat_truth, "_edges", lambda hit, colours: np.ones(hit.shape, bool))
    full = cast(shapes, splat_truth_scene.LIGHT, camera)
    difference = np.abs(quick.image - full.image)
    assert difference.max() < 0.15 and difference.mean() < 5e-4
    assert np.abs(quick.coverage - full.coverage).mean() < 1e-3


# ---------------------------------------------------------------- the scene


def test_who_is_there_when() -> None:
    names = [{actor.name for actor in splat_truth_scene.shapes_at(t)[1]} for t in (0, 1, 1.9)]
    assert names[1] - names[0] == {"coming and going"} and names[0] == names[2]
    assert len(names[1]) == 8


def test_cameras_see_the_scene_and_are_apart() -> None:
    groups = splat_truth_scene.cameras(64, 48)
    assert [len(groups[name]) for name in ("train", "test", "off_arc")] == [18, 3, 1]
    every = [camera for group in groups.values() for camera in group]
    eyes = np.stack([camera.eye for camera in every])
    apart = np.linalg.norm(eyes[:, None] - eyes, axis=2) + 10 * np.eye(len(eyes))
    assert apart.min() > 0.3 and (eyes[:, 1] < -0.5).all()
    for camera in every:
        shot = splat_truth_scene.shoot(camera, 1.0)
        assert shot.pixels.shape == (48, 64, 3)
        assert shot.there.mean() > 0.15 and 0.01 < shot.moving.mean() < 0.3


def test_pictures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = splat_truth_scene.cameras(32, 24)["test"][0]
    wanted = [(camera, 0.0), (camera, 1.0)]
    first = splat_truth_scene.shoot_all(wanted, tmp_path)
    monkeypatch.setattr(splat_truth_scene, "cast", None)  # not asked again
    again = splat_truth_scene.shoot_all(wanted, tmp_path)
    for one, other in zip(first, again, strict=True):
        assert (one.pixels == other.pixels).all() and (one.moving == other.moving).all()
        assert one.camera is other.camera and one.time == other.time
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


# ---------------------------------------------------------------- surfaces


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_are_even_and_on_the_surface(shape: Shape) -> None:
    found = splat_truth_surface.sample(shape, 0.05)
    points, along = splat_truth_surface.place(shape, found)
    assert np.abs(outside(shape, points)).max() < 1e-7
    normals = normals_of(shape, points)
    across = along - np.einsum("ni,ni->n", along, normals)[:, None] * normals
    assert (np.linalg.norm(across, axis=1) > 0.1).all()
    area = {
        Sphere: 4 * math.pi * 0.7**2,
        Box: 8 * (0.4 * 0.6 + 0.4 * 0.5 + 0.6 * 0.5),
        Floor: math.pi * 1.5**2,
        Capsule: 2 * math.pi * 0.25 * math.sqrt(1.1**2 + 0.5**2 + 0.3**2),  # without its ends
    }[type(shape)]
    assert len(points) * found.apart[0] * found.apart[1] == pytest.approx(area, rel=0.06)
