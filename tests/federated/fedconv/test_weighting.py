"""Aggregation weights: shares sum to one, start as the mean they say, and reject odd shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.federated.aggregation import Update, aggregate
from penstock.federated.arrays import Arrays
from penstock.federated.fedconv.profiles import DEFAULT, PAPER
from penstock.federated.fedconv.weighting import combine, new_weights, shares
from penstock.federated.models import model_spec
from penstock.federated.slicing import extract, static_channels
from penstock.federated.submodels import RATIOS
from tests.federated.sample_models import IMAGES, random_arrays

torch = pytest.importorskip("torch")
from penstock.federated.fedconv.dilation import dilate  # noqa: E402
from penstock.federated.public_training import to_arrays, to_tensors  # noqa: E402

SPEC = model_spec(IMAGES)
FLEETS = st.lists(st.tuples(st.sampled_from(RATIOS), st.integers(1, 500)), min_size=1, max_size=4)


def updates_of(fleet: list[tuple[float, int]]) -> list[Update]:
    return [
        Update(
            f"{number}",
            extract(random_arrays(SPEC, number), SPEC, static_channels(SPEC, ratio)),
            static_channels(SPEC, ratio),
            weight,
        )
        for number, (ratio, weight) in enumerate(fleet)
    ]


@settings(max_examples=15, deadline=None)
@given(FLEETS, st.sampled_from(["coverage", "ones", "normal"]))
def test_shares_sum_to_one(fleet: list[tuple[float, int]], start: str) -> None:
    parts = shares(SPEC, updates_of(fleet), replace(DEFAULT, weights=start))  # type: ignore[arg-type]
    for tensor in SPEC:
        if tensor.averaged:
            total = sum(part[tensor.name] for part in parts.values())
            np.testing.assert_allclose(total, np.ones(tensor.shape), rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(FLEETS)
def test_padded_models_and_weights_of_one_give_heterofls_mean(
    fleet: list[tuple[float, int]],
) -> None:
    updates = updates_of(fleet)
    base = {t.name: np.zeros(t.shape, t.dtype) for t in SPEC}
    for tensor in SPEC:
        base[tensor.name][...] = tensor.kind == "running_var"  # what a pad holds
    expected = aggregate(base, SPEC, updates)
    dilated = [
        to_arrays(dilate(to_tensors(u.arrays), {}, SPEC, ratio, DEFAULT))
        for u, (ratio, _) in zip(updates, fleet, strict=True)
    ]
    parts = shares(SPEC, updates, DEFAULT)

    def stack(models: list[Arrays]) -> dict[str, Any]:
        return to_tensors({n: np.stack([m[n] for m in models]) for n in models[0]})

    weights = stack([new_weights(SPEC, DEFAULT, np.random.default_rng(0)) for _ in updates])
    made = to_arrays(combine(SPEC, stack(dilated), stack(list(parts.values())), weights))
    for name, array in expected.items():
        np.testing.assert_allclose(made[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_weights_are_of_trained_values_only() -> None:
    ones = new_weights(SPEC, DEFAULT, np.random.default_rng(0))
    assert set(ones) == {t.name for t in SPEC if t.kind in ("conv", "linear", "bias", "norm")}
    assert all((array == 1).all() for array in ones.values())
    normal = new_weights(SPEC, PAPER, np.random.default_rng(0))
    assert all(array.std() > 0.3 for array in normal.values() if array.size > 9)


def test_a_sum_of_other_shapes_is_refused() -> None:
    models = to_tensors({n: np.stack([a]) for n, a in random_arrays(SPEC).items()})
    parts = {name: torch.ones_like(value) for name, value in models.items()}
    parts["conv2.weight"] = parts["conv2.weight"][:, :1]
    with pytest.raises(AssertionError, match=r"conv2\.weight"):
        combine(SPEC, models, parts, {})
