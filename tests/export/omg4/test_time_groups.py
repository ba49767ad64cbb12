"""Groups of splats in time: each splat in one, and each time needs few."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.export.omg4.time_groups import time_groups, visible_spans


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 300), least=st.integers(1, 80))
def test_every_splat_is_in_one_group(seed: int, count: int, least: int) -> None:
    rng = np.random.default_rng(seed)
    begins = rng.uniform(-1, 10, count)
    ends = begins + np.exp(rng.uniform(-6, 3, count))
    groups = time_groups(begins, ends, 0.0, 10.0, least)
    joined = np.concatenate(groups) if groups else np.zeros(0, np.int64)
    assert sorted(joined.tolist()) == list(range(count))
    assert all(len(group) for group in groups)
    # Only what is always needed, and what had nowhere else to go, is in groups of fewer.
    assert sum(len(group) < least for group in groups) <= 1


def test_lasting_splats_are_the_first_group() -> None:
    begins = np.array([0.0] * 50 + [3.0] * 50)
    ends = np.array([10.0] * 50 + [3.5] * 50)
    groups = time_groups(begins, ends, 0.0, 10.0, 10)
    assert groups[0].tolist() == list(range(50))
    assert sorted(np.concatenate(groups[1:]).tolist()) == list(range(50, 100))


def test_without_lasting_splats_the_largest_group_is_first() -> None:
    rng = np.random.default_rng(0)
    begins = rng.uniform(0, 9.5, 500)
    groups = time_groups(begins, begins + 0.3, 0.0, 10.0, 30)
    assert len(groups) > 8
    assert len(groups[0]) == max(map(len, groups))


def test_a_time_needs_a_small_part_of_brief_splats() -> None:
    rng = np.random.default_rng(1)
    begins = rng.uniform(0, 9.7, 5000)
    ends = begins + 0.3
    groups = time_groups(begins, ends, 0.0, 10.0, 50)
    for time in np.linspace(0.1, 9.9, 30):
        needed = sum(len(g) for g in groups if begins[g].min() <= time < ends[g].max())
        seen = int(((begins <= time) & (time < ends)).sum())
        assert needed < 3 * max(seen, 50)


def test_a_scene_of_no_length_is_one_group() -> None:
    groups = time_groups(np.array([0.0, -1.0]), np.array([1.0, 2.0]), 0.5, 0.5, 1)
    assert [len(group) for group in groups] == [2]


def test_spans_are_where_the_weight_is_over_the_cutoff() -> None:
    begins, ends = visible_spans(np.array([2.0], np.float32), np.array([0.5], np.float32))
    assert np.exp(-0.5 * ((begins[0] - 2) / 0.5) ** 2) == pytest.approx(0.05, rel=1e-2)
    assert begins[0] < 2 - 0.5 * 2.4477 and ends[0] > 2 + 0.5 * 2.4477
