"""The order of drawing: near splats together, and no active one missed at any time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock import _native
from penstock.loaders.splats.model import WEIGHT_CUTOFF, SplatModel
from penstock.runtime.splats.camera import look_at
from penstock.runtime.splats.ordering import drawing_order, morton_codes
from penstock.runtime.splats.renderer import SplatRenderer
from penstock.runtime.splats.scene import Scene, scene_bytes
from tests.runtime.splats.scenes import random_model


def moving(count: int, seed: int, shortest: float, longest: float) -> SplatModel:
    """Splats of many durations, some of them beyond the scene's start and end."""
    model = random_model(count, dynamic=True, seed=seed)
    assert model.motion is not None
    draw = np.random.default_rng(seed)
    sigmas = np.exp(draw.uniform(np.log(shortest), np.log(longest), count))
    motion = replace(
        model.motion,
        t_centers=draw.uniform(-1, 3, count).astype(np.float32),
        t_sigmas=sigmas.astype(np.float32),
    )
    return replace(model, motion=motion)


def in_ranges(ranges: NDArray[np.int64], order: NDArray[np.int64]) -> set[int]:
    found: list[int] = []
    for begin, end in ranges:
        assert not found or begin >= 0
        found += order[begin:end].tolist()
    assert len(set(found)) == len(found)
    return set(found)


def active(model: SplatModel, time: float) -> set[int]:
    assert model.motion is not None
    away = time - model.motion.t_centers.astype(np.float64)
    weight = np.exp(-0.5 * (away / model.motion.t_sigmas) ** 2)
    return set(np.flatnonzero(weight > WEIGHT_CUTOFF).tolist())


@given(
    seed=st.integers(0, 1000),
    times=st.lists(st.floats(-2, 4), min_size=1, max_size=5),
    shortest=st.sampled_from([1e-4, 1e-2, 0.3]),
    longest=st.sampled_from([0.3, 5.0, 1e6]),
)
def test_no_active_splat_is_missed(
    seed: int, times: list[float], shortest: float, longest: float
) -> None:
    model = moving(300, seed, shortest, longest)
    order, ladder = drawing_order(model)
    assert sorted(order.tolist()) == list(range(300))
    assert ladder is not None
    for time in [*times, 0.0, 1.0, 2.0]:
        ranges = ladder.ranges(time)
        assert (ranges[:, 0] < ranges[:, 1]).all()
        assert (ranges[1:, 0] >= ranges[:-1, 1]).all()
        assert active(model, time) <= in_ranges(ranges, order)


def test_few_others_are_looked_at() -> None:
    model = moving(20_000, 1, 0.01, 0.05)
    order, ladder = drawing_order(model)
    assert ladder is not None
    for time in np.linspace(0.1, 1.9, 7):
        looked_at = in_ranges(ladder.ranges(float(time)), order)
        assert len(looked_at) < 8 * len(active(model, float(time))) < 20_000


def test_the_picture_is_that_of_all_splats() -> None:
    model = moving(2000, 5, 0.02, 1.0)
    scene, camera = Scene(model), look_at((0, 0, -3), (0, 0, 0), width=70, height=50)
    for time in (0.0, 0.3, 1.0, 1.99):
        options = _native.SplatOptions(
            time=time,
            background=(0, 0, 0),
            low_pass=0.3,
            least_weight=WEIGHT_CUTOFF,
            omg4_sentinel=False,
            colour_tolerance=0.0,
            most_pairs=1 << 20,
        )
        whole = np.zeros((50, 70, 3), np.float32)
        ranges = np.array([[0, scene.count]], np.int64)
        times = _native.SplatRenderer(1).render(
            [scene.native], [ranges], camera.native(), options, whole, None
        )
        frame = SplatRenderer([scene], threads=1).render(camera, time)
        np.testing.assert_array_equal(frame.image, whole)
        assert frame.times.visible == times.visible
        assert frame.times.active < times.active == 2000


def test_one_moment() -> None:
    """A scene whose start is its end, and one of a single splat."""
    model = moving(50, 2, 0.1, 0.2)
    assert model.motion is not None
    still = replace(model, motion=replace(model.motion, start=1.0, end=1.0))
    order, ladder = drawing_order(still)
    assert ladder is not None
    for time in (-3.0, 1.0, 5.0):
        assert active(still, time) <= in_ranges(ladder.ranges(time), order)
    assert drawing_order(moving(1, 3, 0.1, 0.2))[0].tolist() == [0]


def test_near_splats_follow_each_other() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3)).astype(np.float32)
    order = np.argsort(morton_codes(points), kind="stable")
    steps = np.linalg.norm(np.diff(points[order], axis=0), axis=1)
    assert steps.mean() < 0.2 < np.linalg.norm(np.diff(points, axis=0), axis=1).mean()
    one = np.array([[3, 3, 3]], np.float32)
    assert morton_codes(one).tolist() == [0]
    assert morton_codes(one[:0]).tolist() == []
    cells = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32)
    codes = morton_codes(np.repeat(cells, 50, axis=0))[::50]
    assert codes.tolist() == [0, 0x9249249, 0x12492492, 0x24924924, 0x3FFFFFFF]


def test_sizes_are_counted() -> None:
    for degree in (0, 1, 3):
        for dynamic in (False, True):
            for count in (0, 1, 5000):
                scene = Scene(random_model(count, degree=degree, dynamic=dynamic))
                bound = scene_bytes(count, (degree + 1) ** 2, dynamic)
                assert scene.nbytes <= bound <= scene.nbytes + 4 * count + 16384
