"""Views keep shape, type and finiteness for any window; each change does what it says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from penstock.errors import UsageError
from penstock.federated.training import augmentations as views

Change = Callable[[views.Windows, np.random.Generator], views.Windows]
SERIES: list[Change] = [views.rotation, views.time_warp, views.permutation, views.cropping]
values = st.floats(-1e6, 1e6, width=32)
series = npst.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9).flatmap(
    lambda shape: npst.arrays(np.float32, shape, elements=values)
)
features = npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9).flatmap(
    lambda shape: npst.arrays(np.float32, shape, elements=values)
)


def check(change: Change, windows: views.Windows, seed: int) -> None:
    before = windows.copy()
    seen = change(windows, np.random.default_rng(seed))
    assert seen.shape == windows.shape
    assert seen.dtype == np.float32
    assert np.isfinite(seen).all()
    assert (windows == before).all(), "the input was changed"
    assert not np.shares_memory(seen, windows)
    assert (seen == change(windows, np.random.default_rng(seed))).all(), "the seed decides"


@pytest.mark.parametrize("change", [*SERIES, views.weak_view, views.strong_view])
@settings(max_examples=30, deadline=None)
@given(windows=series, seed=st.integers(0, 1000))
def test_series(change: Change, windows: views.Windows, seed: int) -> None:
    check(change, windows, seed)


@pytest.mark.parametrize("change", [views.weak_view, views.strong_view])
@settings(max_examples=30, deadline=None)
@given(windows=features, seed=st.integers(0, 1000))
def test_features(change: Change, windows: views.Windows, seed: int) -> None:
    check(change, windows, seed)


@pytest.mark.parametrize("change", [*SERIES, views.weak_view, views.strong_view])
def test_no_windows(change: Change) -> None:
    none = np.zeros((0, 6, 16), np.float32)
    assert change(none, np.random.default_rng(0)).shape == none.shape


def test_rotation_keeps_the_length_of_every_axis_group() -> None:
    windows = np.random.default_rng(1).normal(size=(5, 7, 20)).astype(np.float32)
    turned = views.rotation(windows, np.random.default_rng(2), degrees=90)
    for group in (slice(0, 3), slice(3, 6)):
        before = np.linalg.norm(windows[:, group], axis=1)
        assert np.linalg.norm(turned[:, group], axis=1) == pytest.approx(before, rel=1e-4)
    assert (turned[:, 6] == windows[:, 6]).all(), "a seventh channel is in no group of three"
    assert not np.allclose(turned[:, :6], windows[:, :6])


def test_rotation_matrices_against_the_cross_product() -> None:
    rng = np.random.default_rng(3)
    axis = rng.normal(size=(4, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = rng.uniform(-3, 3, 4)
    vector = rng.normal(size=(4, 3))
    for a, theta, v, matrix in zip(
        axis, angle, vector, views.rotation_matrices(axis, angle), strict=True
    ):
        want = (
            v * np.cos(theta) + np.cross(a, v) * np.sin(theta) + a * (a @ v) * (1 - np.cos(theta))
        )
        assert matrix @ v == pytest.approx(want)


def test_permutation_keeps_every_sample_and_cuts_into_segments() -> None:
    windows = np.tile(np.arange(16, dtype=np.float32), (8, 2, 1))
    seen = views.permutation(windows, np.random.default_rng(4))
    assert (np.sort(seen, axis=2) == windows).all()
    breaks = (np.diff(seen, axis=2) != 1).sum(axis=2)
    assert breaks.max() <= 3
    assert breaks.max() > 0
    assert (seen[:, 0] == seen[:, 1]).all(), "channels stay together"


def test_warp_and_crop_read_a_ramp_in_order() -> None:
    ramp = np.tile(np.arange(32, dtype=np.float32), (6, 1, 1))
    for change in (views.time_warp, views.cropping):
        seen = change(ramp, np.random.default_rng(5))
        assert (np.diff(seen, axis=2) > 0).all()
        assert seen.min() >= 0
        assert seen.max() <= 31
    warped = views.time_warp(ramp, np.random.default_rng(5))
    assert warped[:, :, [0, -1]] == pytest.approx(ramp[:, :, [0, -1]], abs=1e-3)


def test_masking_drops_the_share() -> None:
    ones = np.ones((50, 200), np.float32)
    assert views.masking(ones, np.random.default_rng(6), 0.2).mean() == pytest.approx(0.8, abs=0.02)


def test_images_have_no_views() -> None:
    with pytest.raises(UsageError, match="channels, time"):
        views.strong_view(np.zeros((2, 1, 8, 8), np.float32), np.random.default_rng(0))
