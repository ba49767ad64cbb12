"""What the native rasteriser refuses of Python, and what several threads may do with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock import _native
from penstock.runtime.splats.camera import look_at
from penstock.runtime.splats.scene import Scene
from tests.runtime.splats.scenes import random_model

COUNT = 7
CAMERA = look_at((0, 0, -3), (0, 0, 0), width=20, height=12).native()
WHOLE = np.array([[0, COUNT]], np.int64)


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def scene(**changes: Any) -> _native.SplatScene:
    arrays: dict[str, Any] = {
        "mean": zeros(3, COUNT),
        "covariance": zeros(6, COUNT),
        "log_opacity": zeros(COUNT),
        "colour": zeros(3, COUNT),
        "sh": None,
        "velocity": zeros(3, COUNT),
        "t_center": zeros(COUNT),
        "t_sigma": np.ones(COUNT, np.float32),
    }
    return _native.SplatScene(**(arrays | changes))


def options(**changes: Any) -> _native.SplatOptions:
    values: dict[str, Any] = {
        "time": 0.0,
        "background": (0, 0, 0),
        "low_pass": 0.3,
        "least_weight": 0.05,
        "omg4_sentinel": False,
        "colour_tolerance": 0.0,
        "most_pairs": 1000,
    }
    return _native.SplatOptions(**(values | changes))


def test_a_scene() -> None:
    made = scene()
    assert (made.count, made.bytes) == (COUNT, 0)
    made = scene(colour=None, sh=zeros(9, 3, COUNT))
    assert made.bytes >= 12 * COUNT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": zeros(3, COUNT + 1)}, r"mean is \(3, 8\), expected \(3, 7\)"),
        ({"mean": zeros(COUNT, 3)}, r"mean is \(7, 3\)"),
        ({"covariance": zeros(3, COUNT)}, r"covariance is \(3, 7\), expected \(6, 7\)"),
        ({"colour": None}, "either colour or sh"),
        ({"sh": zeros(1, 3, COUNT)}, "either colour or sh"),
        ({"colour": None, "sh": zeros(5, 3, COUNT)}, "1, 4, 9 or 16 coefficients, not 5"),
        ({"colour": None, "sh": zeros(4, 3, COUNT - 1)}, "sh is for 6 splats, expected 7"),
        ({"velocity": None}, "go together"),
        ({"t_sigma": None}, "go together"),
        ({"t_center": zeros(COUNT - 1)}, "t_center has 6 values"),
        ({"mean": np.zeros(12 * COUNT + 1, np.uint8)[1:].view("f4").reshape(3, -1)}, "not aligned"),
    ],
)
def test_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scene(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": np.zeros((3, COUNT))},
        {"mean": zeros(COUNT, 3).T},
        {"log_opacity": zeros(2 * COUNT)[::2]},
        {"mean": None},
        {"colour": None, "sh": zeros(4, 2, COUNT)},
    ],
)
def test_types(changes: dict[str, Any]) -> None:
    """No array is copied in silence: what is changed in it later must be drawn."""
    with pytest.raises(TypeError):
        scene(**changes)


def test_pictures_are_checked() -> None:
    renderer, made = _native.SplatRenderer(1), scene()
    image = zeros(12, 20, 3)
    renderer.render([made], [WHOLE], CAMERA, options(), image, None)
    renderer.render([], [], CAMERA, options(), image, zeros(12, 20))
    wrong: list[tuple[Any, Any, Any, Any, str]] = [
        ([made], [], image, None, "each scene has an array of ranges"),
        ([made], [WHOLE], zeros(20, 12, 3), None, r"image is \(20, 12"),
        ([made], [WHOLE], image, zeros(12, 21), r"rest is \(12, 21"),
        ([made], [WHOLE + 1], image, None, "no range after 0 of a scene of 7"),
        ([made], [-WHOLE], image, None, r"no range \[0, -7\)"),
        ([made], [np.array([[0, 5], [4, 7]])], image, None, "no range after 5"),
        ([made], [np.array([[0, 2**62]])], image, None, "no range after 0"),
    ]
    for scenes, ranges, picture, rest, message in wrong:
        with pytest.raises(ValueError, match=message):
            renderer.render(scenes, ranges, CAMERA, options(), picture, rest)
    with pytest.raises((TypeError, ValueError)):
        renderer.render([None], [WHOLE], CAMERA, options(), image, None)  # type: ignore[list-item]
    frozen = zeros(12, 20, 3)
    frozen.flags.writeable = False
    unfit: list[Any] = [frozen, np.zeros((12, 20, 3)), zeros(12, 20, 6)[:, :, ::2]]
    for picture in unfit:
        with pytest.raises(TypeError):
            renderer.render([made], [WHOLE], CAMERA, options(), picture, None)
    for changes, message in (
        ({"most_pairs": 0}, "most_pairs"),
        ({"least_weight": 1.0}, "least_weight"),
        ({"low_pass": -1.0}, "low_pass"),
    ):
        with pytest.raises(ValueError, match=message):
            renderer.render([made], [WHOLE], CAMERA, options(**changes), image, None)
    for threads in (0, 257):
        with pytest.raises(ValueError, match=f"threads is {threads}"):
            _native.SplatRenderer(threads)


def test_gradients_are_checked() -> None:
    renderer = _native.SplatRenderer(1)
    towards = zeros(12, 20, 3)
    still = scene(velocity=None, t_center=None, t_sigma=None)
    renderer.backward(still, CAMERA, options(), towards, zeros(16, COUNT))
    renderer.backward(scene(), CAMERA, options(), towards, zeros(21, COUNT))
    with pytest.raises(ValueError, match=r"gradients is \(16, 7\), expected \(21, 7\)"):
        renderer.backward(scene(), CAMERA, options(), towards, zeros(16, COUNT))
    with pytest.raises(ValueError, match="image_gradient"):
        renderer.backward(scene(), CAMERA, options(), zeros(12, 19, 3), zeros(21, COUNT))


def test_numbers_that_are_none() -> None:
    """NaN and infinity in any array: a picture all the same, of the other splats."""
    model = random_model(300, dynamic=True, seed=1)
    for bad in (np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-45):
        for field in range(4):
            made = Scene(model)
            made._arrays[field].reshape(-1)[::50] = bad  # means, covariances, opacities, colours
            image, rest = zeros(12, 20, 3), zeros(12, 20)
            times = _native.SplatRenderer(2).render(
                [made.native], [made.ranges(1.0)], CAMERA, options(time=1.0), image, rest
            )
            assert times.visible > 0
            assert np.isfinite(rest).all()
            assert field == 3 or np.isfinite(image).all()
            gradients = zeros(21, 300)
            _native.SplatRenderer(2).backward(
                made.native, CAMERA, options(time=1.0), np.ones_like(image), gradients
            )


def test_the_room_is_as_large_as_told() -> None:
    for count in (0, 100, 30_000):
        made = Scene(random_model(count, size=0.3))
        renderer = _native.SplatRenderer(2)
        image = zeros(12, 20, 3)
        renderer.render(
            [made.native],
            [np.array([[0, count]])],
            CAMERA,
            options(most_pairs=1 << 20),
            image,
            None,
        )
        assert renderer.bytes <= _native.splat_room_bytes(count, 20, 12, 2, 1 << 20)
    assert _native.splat_room_bytes(1 << 20, 16384, 16384, 256, 1) < 1 << 30
    for arguments in ((1, 0, 1, 1, 1), (1, 1, 20_000, 1, 1), (1, 1, 1, 0, 1)):
        with pytest.raises(ValueError, match="splat_room_bytes"):
            _native.splat_room_bytes(*arguments)


def test_threads_share_a_renderer_and_a_scene() -> None:
    """They wait for each other, whichever order they name scenes in."""
    scenes = [Scene(random_model(2000, degree=3, seed=seed)) for seed in (1, 2)]
    cameras = [look_at((np.sin(k), 0, -3), (0, 0, 0), width=64, height=48) for k in range(6)]
    renderers = [_native.SplatRenderer(2), _native.SplatRenderer(1)]

    def draw(k: int) -> NDArray[np.float32]:
        picture = zeros(48, 64, 3)
        order = [one.native for one in (scenes if k % 2 else scenes[::-1])]
        ranges = [np.array([[0, 2000]])] * 2
        banded = options(most_pairs=5000)
        renderers[k % 3 % 2].render(order, ranges, cameras[k % 6].native(), banded, picture, None)
        return picture

    alone = [draw(k) for k in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(draw, range(24)), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_scene_twice_in_one_picture() -> None:
    made = Scene(random_model(100, degree=1))
    image = zeros(12, 20, 3)
    ranges = np.array([[0, 100]])
    times = _native.SplatRenderer(1).render(
        [made.native, made.native], [ranges, ranges], CAMERA, options(), image, None
    )
    assert times.active == 200
