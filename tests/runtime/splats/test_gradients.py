"""The native backward pass against differences of the reference in doubles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock import _native
from penstock.runtime.splats.camera import Camera, look_at
from tests.runtime.splats.reference import Splats, Taken, picture

Doubles = NDArray[np.float64]

STEP = 1e-6
BACKGROUND = (0.3, 0.1, 0.7)
TIME = 0.6
# Of the largest derivative of a field: float32 sums, and pixels at the edge of a splat that one of
# the two leaves out.
TOLERANCE = 5e-3
ROWS = {
    "colours": slice(0, 3),
    "opacities": slice(3, 4),
    "means": slice(4, 7),
    "covariances": slice(7, 13),
    "middles": slice(13, 15),
    "weights": slice(15, 16),
    "velocities": slice(16, 19),
    "t_centers": slice(19, 20),
    "t_sigmas": slice(20, 21),
}
XX_TO_ZZ = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


@pytest.fixture(params=_native.kernels_available())
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.kernels_name()
    _native.kernels_select(request.param)
    yield request.param
    _native.kernels_select(before)


def some_splats(count: int, seed: int) -> Splats:
    """Of all shapes, moving; single precision can hold all numbers but the covariances."""
    draw = np.random.default_rng(seed)
    factors = draw.normal(0, 0.15, (count, 3, 3))
    splats = Splats(
        means=draw.uniform(-0.7, 0.7, (count, 3)),
        covariances=factors @ factors.transpose(0, 2, 1),
        opacities=draw.uniform(0.1, 0.97, count),
        colours=draw.uniform(0.1, 1, (count, 3)),
        velocities=draw.normal(0, 0.3, (count, 3)),
        t_centers=draw.uniform(0.3, 0.9, count),
        t_sigmas=draw.uniform(0.3, 1, count),
    )
    for name in (
        "means",
        "covariances",
        "opacities",
        "colours",
        "velocities",
        "t_centers",
        "t_sigmas",
    ):
        setattr(splats, name, getattr(splats, name).astype(np.float32).astype(np.float64))
    return splats


def camera_at(distance: float) -> Camera:
    eye = distance * np.array([0.48, -0.36, -0.8])
    camera = look_at(eye, (0, 0.05, 0), width=70, height=52)
    return replace(camera, cx=camera.cx + 2, fy=1.2 * camera.fy)


def native_gradient(
    splats: Splats, camera: Camera, towards: Doubles, *, sentinel: bool = False, threads: int = 2
) -> NDArray[np.float32]:
    """[21, n], rows as `ROWS` has them."""

    def columns(array: Doubles | None) -> NDArray[np.float32]:
        assert array is not None
        return np.ascontiguousarray(array.T, np.float32)

    full = splats.covariances
    scene = _native.SplatScene(
        mean=columns(splats.means),
        covariance=columns(np.stack([full[:, i, j] for i, j in XX_TO_ZZ], axis=1)),
        log_opacity=np.log(splats.opacities).astype(np.float32),
        colour=columns(splats.colours),
        sh=None,
        velocity=columns(splats.velocities),
        t_center=columns(splats.t_centers),
        t_sigma=columns(splats.t_sigmas),
    )
    options = _native.SplatOptions(
        time=TIME,
        background=BACKGROUND,
        low_pass=0.3,
        least_weight=0.05,
        omg4_sentinel=sentinel,
        colour_tolerance=0.0,
        most_pairs=1 << 20,
    )
    rows = np.full((21, len(splats.means)), np.nan, np.float32)
    renderer = _native.SplatRenderer(threads)
    renderer.backward(scene, camera.native(), options, towards.astype(np.float32), rows)
    return rows


def difference(
    splats: Splats, camera: Camera, towards: Doubles, footprint: str
) -> Callable[[Callable[[Splats, float], None]], float]:
    """A function of a change of the splats by a step: how the loss changes, by central difference.

    Which pixels take which splats stays as it is: the rasteriser's gradient has no part for them.
    """
    base = picture(splats, camera, TIME, background=BACKGROUND, footprint=footprint)

    def loss(changed: Splats, taken: list[Taken]) -> float:
        drawn = picture(
            changed, camera, TIME, background=BACKGROUND, footprint=footprint, taken=taken
        )
        return float((drawn.image * towards).sum())

    def derivative(change: Callable[[Splats, float], None]) -> float:
        sides = []
        for step in (STEP, -STEP):
            changed = deepcopy(splats)
            change(changed, step)
            sides.append(loss(changed, base.taken))
        return (sides[0] - sides[1]) / (2 * STEP)

    return derivative


@pytest.mark.parametrize("footprint", ["exact", "omg4-sentinel"])
@pytest.mark.parametrize("distance", [2.5, 0.9])
def test_every_field(kernels: str, footprint: str, distance: float) -> None:
    splats, camera = some_splats(8, seed=3), camera_at(distance)
    towards = np.random.default_rng(5).normal(size=(camera.height, camera.width, 3))
    rows = native_gradient(splats, camera, towards, sentinel=footprint != "exact")
    derivative = difference(splats, camera, towards, footprint)

    def check(name: str, found: NDArray[np.float32], expected: Doubles) -> None:
        scale = np.abs(expected).max()
        assert scale > 0, name
        assert np.abs(found - expected).max() <= TOLERANCE * scale, name

    for name in ("colours", "means", "velocities"):
        expected = np.empty((3, len(splats.means)))
        for k, i in np.ndindex(expected.shape):

            def change(s: Splats, step: float, i: int = i, k: int = k, name: str = name) -> None:
                getattr(s, name)[i, k] += step

            expected[k, i] = derivative(change)
        check(name, rows[ROWS[name]], expected)
    for name in ("opacities", "t_centers", "t_sigmas"):
        one = np.empty((1, len(splats.means)))
        for i in range(one.shape[1]):

            def move(s: Splats, step: float, i: int = i, name: str = name) -> None:
                getattr(s, name)[i] += step

            one[0, i] = derivative(move)
        check(name, rows[ROWS[name]], one)
    six = np.empty((6, len(splats.means)))
    for k, i in np.ndindex(six.shape):

        def bend(s: Splats, step: float, i: int = i, k: int = k) -> None:
            row, column = XX_TO_ZZ[k]
            s.covariances[i, row, column] += step
            if row != column:
                s.covariances[i, column, row] += step

        six[k, i] = derivative(bend)
    check("covariances", rows[ROWS["covariances"]], six)


def test_weights(kernels: str) -> None:
    """The sum over the image of what each splat was blended with."""
    splats, camera = some_splats(40, seed=1), camera_at(2.5)
    towards = np.zeros((camera.height, camera.width, 3))
    rows = native_gradient(splats, camera, towards)
    white = replace_colours(splats, np.zeros_like(splats.colours))
    for i in range(0, 40, 7):
        white.colours[:] = 0
        white.colours[i] = 1
        alone = picture(white, camera, TIME).image[:, :, 0].sum()
        assert rows[ROWS["weights"]][0, i] == pytest.approx(alone, rel=5e-3, abs=1e-3)
    assert not rows[:15].any()  # no gradient comes in, none goes out
    assert not rows[16:].any()


def replace_colours(splats: Splats, colours: Doubles) -> Splats:
    return replace(splats, colours=colours)


def test_a_mean_moves_its_footprint(kernels: str) -> None:
    """By one pixel's worth along x and y: the gradient by the middle is the mean's, scaled."""
    splats, camera = some_splats(5, seed=2), camera_at(2.5)
    # Round splats, small against their distance: their footprints do not change as they move aside.
    splats.covariances[:] = np.eye(3) * 1e-4
    splats.velocities = np.zeros_like(splats.means)
    towards = np.random.default_rng(0).normal(size=(camera.height, camera.width, 3))
    rows = native_gradient(splats, camera, towards)
    depth = (splats.means @ camera.rotation.T + camera.translation)[:, 2]
    along = camera.rotation @ rows[ROWS["means"]]  # by a step to the right, down and forward
    np.testing.assert_allclose(along[0], rows[13] * camera.fx / depth, rtol=0.1, atol=0.5)
    np.testing.assert_allclose(along[1], rows[14] * camera.fy / depth, rtol=0.1, atol=0.5)


def test_threads_change_nothing(kernels: str) -> None:
    splats, camera = some_splats(300, seed=8), camera_at(1.5)
    towards = np.random.default_rng(1).normal(size=(camera.height, camera.width, 3))
    one = native_gradient(splats, camera, towards, threads=1)
    assert np.isfinite(one).all()
    for threads in (2, 4):
        np.testing.assert_array_equal(
            one, native_gradient(splats, camera, towards, threads=threads)
        )
