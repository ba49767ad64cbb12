"""Slices: HeteroFL's first channels, FedRolex's window that rolls over all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.federated.arrays import check_arrays
from penstock.federated.models import ModelOptions, model_spec
from penstock.federated.slicing import extract, rolling_channels, static_channels
from penstock.federated.submodels import width
from tests.federated.sample_models import IMAGES, MODELS, RATIOS_OF_TESTS, random_arrays


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MODELS), st.sampled_from(RATIOS_OF_TESTS), st.integers(0, 1000))
def test_slices_have_the_shapes_of_the_sub_model(
    options: ModelOptions, ratio: float, number: int
) -> None:
    spec = model_spec(options)
    arrays = random_arrays(spec)
    for channels in (static_channels(spec, ratio), rolling_channels(spec, ratio, number)):
        check_arrays(extract(arrays, spec, channels), spec.at(ratio).by_name(), "a slice")


def test_static_slices_are_the_first_channels() -> None:
    spec = model_spec(IMAGES)
    arrays = random_arrays(spec)
    sub = extract(arrays, spec, static_channels(spec, 0.5))
    assert np.array_equal(sub["conv2.weight"], arrays["conv2.weight"][:3, :2])
    # Three of seven channels of 2 x 3 positions each: the flattened axis is channels first.
    assert np.array_equal(sub["classifier.weight"], arrays["classifier.weight"][:, : 3 * 6])
    assert np.array_equal(sub["classifier.bias"], arrays["classifier.bias"])


def test_narrow_static_slices_lie_inside_wide_ones() -> None:
    spec = model_spec(IMAGES)
    for narrow, wide in ((0.25, 0.5), (0.5, 0.75), (0.5625, 1.0)):
        for group, channels in static_channels(spec, narrow).items():
            assert set(channels) <= set(static_channels(spec, wide)[group])


@pytest.mark.parametrize("ratio", RATIOS_OF_TESTS)
def test_rolling_windows_train_every_channel_equally_often(ratio: float) -> None:
    spec = model_spec(IMAGES)
    for group, count in spec.groups().items():
        windows = [rolling_channels(spec, ratio, number)[group] for number in range(count)]
        seen = np.bincount(np.concatenate(windows), minlength=count)
        assert (seen == width(count, ratio)).all()
        assert 5 not in windows[0] or ratio > 0.75  # starts at channel 0


def test_ratio_one_is_the_identity_in_every_round() -> None:
    spec = model_spec(IMAGES)
    arrays = random_arrays(spec)
    for number in range(9):
        sub = extract(arrays, spec, rolling_channels(spec, 1.0, number))
        assert all(np.array_equal(sub[name], arrays[name]) for name in arrays)


def test_slices_are_copies() -> None:
    spec = model_spec(IMAGES)
    arrays = random_arrays(spec)
    sub = extract(arrays, spec, static_channels(spec, 1.0))
    for array in sub.values():
        array[...] = 0
    assert arrays["conv1.weight"].any() and arrays["norm1.num_batches_tracked"].any()


def test_a_ratio_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match="ratio"):
        static_channels(model_spec(IMAGES), 0)
    with pytest.raises(UsageError, match="ratio"):
        rolling_channels(model_spec(IMAGES), 1.5, 0)
