"""The FedConv benchmark's splits share no image, depend on the seed, and are as skewed as asked."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.fedconv_data import HELD_OUT, LEAST, PUBLIC, TEST, Split, split

IMAGES = np.arange(10_000, dtype=np.float32).reshape(-1, 1, 1, 1)  # each image is its own number
LABELS = np.random.default_rng(0).integers(10, size=10_000)


def numbers(parts: Split) -> list[set[int]]:
    data = [parts.public.train, parts.public.hold_out, parts.test, *parts.clients.values()]
    return [set(part.inputs.reshape(-1).astype(int).tolist()) for part in data]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 1.0, np.inf])
def test_parts_are_disjoint_and_complete(alpha: float) -> None:
    parts = split(IMAGES, LABELS, alpha, 10, seed=1)
    held = numbers(parts)
    assert sum(map(len, held)) == len(set.union(*held)) == 10_000
    assert len(parts.public.train) == PUBLIC - HELD_OUT and len(parts.test) == TEST
    assert min(len(data) for data in parts.clients.values()) >= LEAST
    for data in parts.clients.values():
        assert np.array_equal(data.labels, LABELS[data.inputs.reshape(-1).astype(int)])


def test_the_seed_decides_and_the_servers_part_is_the_same_for_every_skew() -> None:
    one, again, other = (split(IMAGES, LABELS, 0.1, 10, seed) for seed in (1, 1, 2))
    assert numbers(one) == numbers(again) != numbers(other)
    assert numbers(one)[:3] == numbers(split(IMAGES, LABELS, np.inf, 10, 1))[:3]


def test_a_smaller_alpha_is_a_greater_skew() -> None:
    def most(alpha: float) -> float:
        """Mean share of a client's most frequent label."""
        clients = split(IMAGES, LABELS, alpha, 10, seed=3).clients.values()
        return float(np.mean([np.bincount(c.labels).max() / len(c) for c in clients]))

    assert most(0.05) > most(1.0) > most(np.inf)
