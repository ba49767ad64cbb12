"""Shapes of sub-models: which axes shrink, by how much, and which never do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.federated.models import ModelOptions, model_spec
from penstock.federated.submodels import Axis, ModelSpec, check_ratio, linear, width
from tests.federated.sample_models import MODELS, RATIOS_OF_TESTS


@pytest.mark.parametrize(
    ("channels", "ratio", "expected"),
    [(16, 0.75, 12), (32, 0.5625, 18), (7, 0.5, 3), (30, 0.1, 3), (3, 0.25, 1), (100, 0.29, 29)],
)
def test_width_is_the_whole_part(channels: int, ratio: float, expected: int) -> None:
    assert width(channels, ratio) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.floats(1e-6, 1))
def test_width_is_between_one_and_all_and_grows_with_the_ratio(channels: int, ratio: float) -> None:
    narrow = width(channels, ratio)
    assert 1 <= narrow <= channels and width(channels, 1.0) == channels
    assert width(channels, ratio / 2) <= narrow <= max(1, channels * ratio + 1e-6)


@pytest.mark.parametrize("options", MODELS, ids=lambda o: o.name)
@pytest.mark.parametrize("ratio", RATIOS_OF_TESTS)
def test_only_hidden_channels_shrink(options: ModelOptions, ratio: float) -> None:
    full, sub = model_spec(options), model_spec(options).at(ratio)
    assert [t.name for t in sub] == [t.name for t in full]
    groups = full.groups()
    assert sub.groups() == {group: width(count, ratio) for group, count in groups.items()}
    weights = [t for t in sub if t.kind in ("conv", "linear")]
    assert weights[0].shape[1] == options.input_shape[0], "the first layer keeps its inputs"
    assert weights[-1].shape[0] == options.classes, "the last layer keeps its outputs"
    assert sub.tensors[-1].shape == (options.classes,)
    for before, after in zip(full, sub, strict=True):
        assert after.shape[2:] == before.shape[2:], "kernels keep their size"


@pytest.mark.parametrize("options", MODELS, ids=lambda o: o.name)
def test_ratio_one_is_the_model(options: ModelOptions) -> None:
    assert model_spec(options).at(1.0) == model_spec(options)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.0001, float("nan"), float("inf")])
def test_other_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match="ratio"):
        check_ratio(ratio)
    with pytest.raises(UsageError, match="ratio"):
        model_spec(MODELS[0]).at(ratio)


def test_positions_follow_the_span() -> None:
    axis = Axis(4, "a", span=3)
    assert axis.size == 12
    assert axis.positions(np.array([2, 0])).tolist() == [6, 7, 8, 0, 1, 2]


def test_parameters_are_counted() -> None:
    spec = ModelSpec("m", linear("fc", Axis(3), Axis(2, "h", span=5)))
    assert spec.parameters() == 3 * 10 + 3


def test_a_group_of_two_sizes_is_refused() -> None:
    spec = ModelSpec(
        "m", (*linear("a", Axis(3, "h"), Axis(2)), *linear("b", Axis(2), Axis(4, "h")))
    )
    with pytest.raises(UsageError, match=r"b\.weight has 4 channels of group 'h'.*3"):
        spec.groups()
