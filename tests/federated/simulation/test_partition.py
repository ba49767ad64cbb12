"""Partitions: every sample on one device, the skew that was asked for, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.federated.simulation.partition import Parts, by_user, dirichlet, iid, partition


def whole(parts: Parts, samples: int) -> bool:
    return np.array_equal(np.sort(np.concatenate(parts)), np.arange(samples))


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 300),
    devices=st.integers(1, 60),
    classes=st.integers(1, 12),
    alpha=st.sampled_from([1e-3, 0.05, 0.1, 1.0, 1e4]),
    least=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_every_sample_is_on_one_device_and_no_device_is_short(
    samples: int, devices: int, classes: int, alpha: float, least: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(-1, classes, samples)
    if samples < devices * least:
        with pytest.raises(UsageError, match="not enough"):
            dirichlet(labels, devices, alpha, seed, least)
        return
    parts = dirichlet(labels, devices, alpha, seed, least)
    assert len(parts) == devices and whole(parts, samples)
    assert min(map(len, parts)) >= least
    assert all((np.diff(part) > 0).all() for part in parts)
    again = dirichlet(labels, devices, alpha, seed, least)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    even = iid(samples, devices, seed)
    assert whole(even, samples) and len({len(part) for part in even}) <= 2


def test_a_small_alpha_skews_labels_and_a_large_one_does_not() -> None:
    labels = np.repeat(np.arange(10), 200)

    def dominant(alpha: float) -> float:
        parts = dirichlet(labels, 10, alpha, 0)
        return float(np.mean([np.bincount(labels[p]).max() / len(p) for p in parts]))

    assert dominant(0.1) > 0.5 > 0.2 > dominant(1e4)


def test_by_user_keeps_users_whole() -> None:
    users = np.random.default_rng(0).integers(0, 20, 400) * 7
    parts = by_user(users, 6, seed=1)
    assert whole(parts, 400)
    owners = [set(users[part].tolist()) for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 20


@pytest.mark.parametrize(
    ("kind", "devices", "alpha", "said"),
    [
        ("zipf", 2, 1.0, "expected one of iid, dirichlet, by-user"),
        ("by-user", 2, 1.0, "needs an array `users`"),
        ("dirichlet", 2, 0.0, "alpha is 0.0"),
        ("iid", 0, 1.0, "devices is 0"),
        ("iid", 11, 1.0, "take 10 devices at most"),
    ],
)
def test_bad_wishes_are_refused(kind: str, devices: int, alpha: float, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        partition(kind, np.zeros(10, np.int64), None, devices, alpha=alpha, seed=0)


def test_more_devices_than_users_is_refused() -> None:
    with pytest.raises(UsageError, match="3 devices but 2 users"):
        by_user(np.array([1, 1, 2]), 3, 0)
