"""Herding against a reference that tries every window in every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.federated.fedmobile.exemplars import select_exemplars


def slow_herding(
    features: NDArray[Any], labels: NDArray[np.int64], per_class: int
) -> dict[int, list[int]]:
    unit = [f / max(np.sqrt((f * f).sum()), 1e-12) for f in features.astype(np.float64)]
    chosen: dict[int, list[int]] = {}
    for label in sorted(set(labels[labels >= 0].tolist())):
        mine = [i for i in range(len(labels)) if labels[i] == label]
        mean = sum(unit[i] for i in mine) / len(mine)
        taken: list[int] = []
        while len(taken) < min(per_class, len(mine)):
            away = {
                i: float(
                    np.linalg.norm(mean - sum(unit[j] for j in [*taken, i]) / (len(taken) + 1))
                )
                for i in mine
                if i not in taken
            }
            taken.append(next(i for i, d in away.items() if d <= min(away.values()) + 1e-9))
        chosen[label] = taken
    return chosen


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(0, 6))
def test_against_the_reference(seed: int, n: int, per_class: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 4)).astype(np.float32)
    labels = rng.integers(-1, 3, n)
    found = select_exemplars(features, labels, per_class)
    assert (labels[found] >= 0).all()
    assert len(set(found.tolist())) == len(found)
    want = slow_herding(features, labels, per_class)
    for label, positions in want.items():
        assert found[labels[found] == label].tolist() == positions


def test_the_earliest_of_equals_is_chosen() -> None:
    """Of two windows each is as far from their mean as the other, but for rounding."""
    for seed in range(200):
        features = np.random.default_rng(seed).normal(size=(2, 4)).astype(np.float32)
        assert select_exemplars(features, np.zeros(2, np.int64), 1).tolist() == [0]


def test_a_shorter_list_is_a_prefix() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 8)).astype(np.float32), np.zeros(30, np.int64)
    longer = select_exemplars(features, labels, 9)
    assert select_exemplars(features, labels, 4).tolist() == longer[:4].tolist()


def test_they_keep_the_mean_better_than_the_first_windows() -> None:
    rng = np.random.default_rng(1)
    features, labels = rng.normal(1, 1, size=(100, 8)).astype(np.float32), np.zeros(100, np.int64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = unit.mean(axis=0)
    ours = np.linalg.norm(unit[select_exemplars(features, labels, 5)].mean(axis=0) - mean)
    assert ours < 0.5 * np.linalg.norm(unit[:5].mean(axis=0) - mean)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="2 labels"):
        select_exemplars(np.zeros((3, 2), np.float32), np.zeros(2, np.int64), 1)
    with pytest.raises(UsageError, match="not finite"):
        select_exemplars(np.full((1, 2), np.nan, np.float32), np.zeros(1, np.int64), 1)
