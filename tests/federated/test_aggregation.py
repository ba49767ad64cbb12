"""The aggregator: a value is the mean of those that trained it, and strange shapes are refused."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import RefusedUpdateError
from penstock.federated.aggregation import Update, aggregate
from penstock.federated.arrays import MOST_COUNT, Arrays, digest
from penstock.federated.models import model_spec
from penstock.federated.slicing import extract, rolling_channels, static_channels
from penstock.federated.submodels import RATIOS
from tests.federated.sample_models import IMAGES, random_arrays

SPEC = model_spec(IMAGES)
BASE = random_arrays(SPEC, seed=99)


def update(device: int, ratio: float, weight: float = 1.0, rolled: int | None = None) -> Update:
    channels = (
        static_channels(SPEC, ratio) if rolled is None else rolling_channels(SPEC, ratio, rolled)
    )
    arrays = extract(random_arrays(SPEC, seed=device), SPEC, channels)
    return Update(f"{device:04x}", arrays, channels, weight)


def slow_mean(updates: list[Update]) -> Arrays:
    """The definition, value by value."""
    result = {name: np.array(array) for name, array in BASE.items()}
    for tensor in SPEC:
        if not tensor.axes:
            seen = [int(u.arrays[tensor.name]) for u in updates]
            result[tensor.name][...] = max(seen, default=int(BASE[tensor.name]))
            continue
        for place in np.ndindex(*tensor.shape):
            total = weight = 0.0
            for one in sorted(updates, key=lambda u: u.device):
                index = SPEC.index(tensor, one.channels)
                at = [np.flatnonzero(axis == p) for axis, p in zip(index, place, strict=True)]
                if all(len(found) for found in at):
                    value = one.arrays[tensor.name][tuple(int(found[0]) for found in at)]
                    total, weight = total + one.weight * float(value), weight + one.weight
            if weight:
                result[tensor.name][place] = total / weight
    return result


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(RATIOS), st.integers(1, 9000), st.booleans()), max_size=5),
    st.randoms(use_true_random=False),
)
def test_it_is_the_weighted_mean_whatever_the_order(
    fleet: list[tuple[float, int, bool]], shuffler: random.Random
) -> None:
    updates = [
        update(device, ratio, weight, 3 if rolled else None)
        for device, (ratio, weight, rolled) in enumerate(fleet)
    ]
    result = aggregate(BASE, SPEC, updates)
    expected = slow_mean(updates)
    for name, array in expected.items():
        assert result[name].dtype == array.dtype
        np.testing.assert_allclose(result[name], array, rtol=1e-6)
    shuffler.shuffle(updates)
    assert digest(aggregate(BASE, SPEC, updates)) == digest(result)


def test_a_value_that_nobody_trained_stays() -> None:
    result = aggregate(BASE, SPEC, [update(1, 0.5), update(2, 0.25)])
    assert np.array_equal(result["conv2.weight"][3:], BASE["conv2.weight"][3:])
    assert not np.array_equal(result["conv2.weight"][:3, :2], BASE["conv2.weight"][:3, :2])


def test_no_update_gives_a_copy() -> None:
    result = aggregate(BASE, SPEC, [])
    assert digest(result) == digest(BASE)
    assert all(not np.shares_memory(result[name], BASE[name]) for name in BASE)


def test_one_full_update_is_the_next_model() -> None:
    one = update(1, 1.0, weight=7)
    assert digest(aggregate(BASE, SPEC, [one])) == digest(one.arrays)


def test_a_missing_device_leaves_the_others_mean() -> None:
    full = [update(d, 1.0, d + 1) for d in range(3)]
    result = aggregate(BASE, SPEC, [full[2], full[0]])
    expected = (full[0].arrays["conv1.bias"] + 3 * full[2].arrays["conv1.bias"]) / 4
    np.testing.assert_allclose(result["conv1.bias"], expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5, 3, 3), (7, 1, 3, 3), (5, 3, 3), (3, 3), (1,), ()])
def test_shapes_that_numpy_would_broadcast_are_refused(shape: tuple[int, ...]) -> None:
    one, two = update(1, 1.0), update(2, 1.0)
    assert np.broadcast_shapes(shape, one.arrays["conv2.weight"].shape) == (7, 5, 3, 3)
    wrong = {**two.arrays, "conv2.weight": np.ones(shape, np.float32)}
    for updates in ([one, replace(two, arrays=wrong)], [replace(two, arrays=wrong), one]):
        with pytest.raises(RefusedUpdateError, match=r"device 0002: conv2\.weight has shape"):
            aggregate(BASE, SPEC, updates)


def test_a_sub_model_of_another_ratio_than_its_channels_is_refused() -> None:
    wrong = replace(update(1, 0.5), channels=static_channels(SPEC, 0.75))
    with pytest.raises(RefusedUpdateError, match="shape"):
        aggregate(BASE, SPEC, [wrong])


def test_two_updates_of_one_device_are_refused() -> None:
    with pytest.raises(RefusedUpdateError, match="0001 sent two updates"):
        aggregate(BASE, SPEC, [update(1, 1.0), update(2, 1.0), update(1, 0.5)])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    with pytest.raises(RefusedUpdateError, match="weight"):
        aggregate(BASE, SPEC, [update(1, 1.0, weight)])


def test_the_greatest_values_and_weights_do_not_overflow() -> None:
    huge = {
        tensor.name: np.full(tensor.shape, 1e18 if tensor.axes else 1, tensor.dtype)
        for tensor in SPEC
    }
    fleet = [Update(str(device), huge, static_channels(SPEC, 1.0), 1e12) for device in range(50)]
    result = aggregate(BASE, SPEC, fleet)
    np.testing.assert_allclose(result["conv1.weight"], np.float32(1e18), rtol=1e-6)


@pytest.mark.parametrize("channels", [[0, 0, 1], [-1, 0, 1], [0, 1, 5], [], [[0, 1, 2]]], ids=str)
def test_channels_of_another_model_are_refused(channels: list[int]) -> None:
    one = update(1, 0.6)
    wrong = {**one.channels, "conv1": np.array(channels, np.intp)}
    with pytest.raises(RefusedUpdateError, match="channels of group 'conv1'"):
        aggregate(BASE, SPEC, [replace(one, channels=wrong)])
    with pytest.raises(RefusedUpdateError, match="expected"):
        aggregate(BASE, SPEC, [replace(one, channels={"conv1": one.channels["conv1"]})])


def test_a_counter_at_its_limit_leaves_room_to_count_on() -> None:
    """A greater one would be refused of every device after its first batch."""
    high = update(1, 1.0)
    arrays = dict(high.arrays)
    counters = [tensor.name for tensor in SPEC if not tensor.averaged]
    for name in counters:
        arrays[name] = np.array(MOST_COUNT, np.int64)
    made = aggregate(BASE, SPEC, [replace(high, arrays=arrays), update(2, 1.0)])
    assert counters and all(int(made[name]) == MOST_COUNT // 2 for name in counters)


def test_one_bad_update_changes_nothing() -> None:
    before = digest(BASE)
    bad = update(2, 1.0)
    bad.arrays["conv1.bias"][1] = np.nan
    with pytest.raises(RefusedUpdateError, match=r"conv1\.bias\[1\] is nan"):
        aggregate(BASE, SPEC, [update(1, 1.0), bad])
    assert digest(BASE) == before
