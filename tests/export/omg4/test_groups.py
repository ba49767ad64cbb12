"""Groups of look-alikes: neighbours of a like colour, each in one group at most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.export.omg4.groups import Groups, find_groups
from penstock.export.omg4.settings import CompressionSettings
from penstock.loaders.splats.model import SplatModel, SplatMotion
from tests.export.omg4.scenes import cloud

# Cells of the whole scene, so that only the similarity decides.
WIDE = CompressionSettings(
    merge_cell=1.0, merge_span=1.0, merge_quantile=0.0, merge_similarity=-0.0003
)


def lists(groups: Groups) -> list[list[int]]:
    bounds = zip(groups.starts[:-1], groups.starts[1:], strict=True)
    return [groups.members[a:b].tolist() for a, b in bounds]


def at(means: list[list[float]], grey: list[float]) -> SplatModel:
    """Static splats at these places with these constant colours, between two far corners."""
    count = len(means) + 2
    model = cloud(count, coefficients=1, moving=False)
    places = np.array([*means, [-5, -5, -5], [5, 5, 5]], np.float32)
    sh = np.repeat(np.array([*grey, 0, 1], np.float32)[:, None, None], 3, axis=2)
    return replace(model, means=places, sh=sh)


def test_what_is_near_and_alike_is_together() -> None:
    model = at([[0.5, 0.5, 0.5], [0.51, 0.5, 0.5], [0.5, 0.5, 0.51], [0.51, 0.51, 0.5]],
               [0.5, 0.5, 0.9, 0.5])  # fmt: skip
    groups = find_groups(model, WIDE.with_changes(merge_cell=0.1))
    assert lists(groups) == [[0, 1, 3]]
    assert groups.first().tolist() == [0]


def test_the_similarity_is_the_paper_s() -> None:
    """-|dx|^2 - 4 |d colour|^2 over -0.0003, x by a range of 10, less outliers of a percent."""
    low, high = np.percentile([-5.0, 0.5, 0.5, 5.0], [0.1, 99.9])
    for step, alike in ((0.0172, True), (0.0174, False)):
        model = at([[0.5, 0.5, 0.5], [0.5 + step * (high - low), 0.5, 0.5]], [0.5, 0.5])
        assert bool(lists(find_groups(model, WIDE))) is alike
    for step, alike in ((0.0049, True), (0.0051, False)):  # 4 * 3 channels * step^2
        model = at([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], [0.5, 0.5 + step])
        assert bool(lists(find_groups(model, WIDE))) is alike


def test_what_is_shown_for_long_has_to_be_more_alike() -> None:
    """Of moments only: a squared distance counts by the share of the time that a pair is shown."""
    still = at([[0.5, 0.5, 0.5], [0.9, 0.5, 0.5]], [0.5, 0.5])  # -0.0016 of the range of 10
    for t_sigma, shape, alike in (
        (0.05, "moments", True),  # 6 % of two seconds
        (5.0, "moments", False),
        (0.05, "representative", False),
    ):
        motion = SplatMotion(
            np.zeros((4, 3), np.float32), np.ones(4, np.float32), np.full(4, t_sigma, np.float32),
            0.0, 2.0, 12.0,
        )  # fmt: skip
        found = find_groups(replace(still, motion=motion), WIDE.with_changes(merge_shape=shape))
        assert lists(found) == ([[0, 1]] if alike else []), (t_sigma, shape)


def test_the_quantile_leaves_the_likest_pairs() -> None:
    means = [[0.5 + 0.001 * k * k, 0.5, 0.5] for k in range(6)]
    model = at(means, [0.5] * 6)
    loose = find_groups(model, WIDE.with_changes(merge_cell=0.2))
    strict = find_groups(model, WIDE.with_changes(merge_cell=0.2, merge_quantile=0.95))
    assert lists(loose) == [[0, 1, 2, 3, 4, 5]]
    assert lists(strict) == [[0, 1]]


def test_cells_grow_from_round_to_round() -> None:
    model = at([[0.95, 0.5, 0.5], [1.05, 0.5, 0.5]], [0.5, 0.5])
    narrow = WIDE.with_changes(merge_cell=0.1, merge_growth=2.0)  # cells of 1, then of 2
    assert not lists(find_groups(model, narrow))
    assert lists(find_groups(model, narrow, 1)) == [[0, 1]]


def test_different_lifetimes_are_not_merged_by_moments() -> None:
    model = cloud(2, coefficients=1)
    assert model.motion is not None
    same = replace(
        model,
        means=np.zeros((2, 3), np.float32),
        sh=np.zeros((2, 1, 3), np.float32),
        motion=replace(
            model.motion,
            velocities=np.zeros((2, 3), np.float32),
            t_centers=np.ones(2, np.float32),
            t_sigmas=np.array([0.1, 0.5], np.float32),
        ),
    )
    assert not find_groups(same, WIDE).count
    assert find_groups(same, WIDE.with_changes(merge_shape="representative")).count == 1


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(0, 400),
    seed=st.integers(0, 5),
    moving=st.booleans(),
    cell=st.sampled_from([0.01, 0.3, 1.0]),
)
def test_every_group_has_two_and_no_splat_two_groups(
    count: int, seed: int, moving: bool, cell: float
) -> None:
    model = cloud(count, seed=seed, moving=moving)
    loose = WIDE.with_changes(merge_cell=cell, merge_similarity=-0.05)
    groups = find_groups(model, loose)
    assert len(set(groups.members.tolist())) == len(groups.members)
    for group in lists(groups):
        assert len(group) > 1 and group == sorted(group) and 0 <= group[0] <= group[-1] < count
    values = np.arange(len(groups.members), dtype=np.float64)
    assert groups.sums(values).sum() == values.sum()
    assert groups.spread(np.arange(groups.count, dtype=np.float64)).shape == values.shape


def test_places_that_are_far_away_or_all_the_same() -> None:
    model = cloud(50, moving=False)
    far = model.means.copy()
    far[0] = 1e30
    find_groups(replace(model, means=far), WIDE.with_changes(merge_cell=1e-6))
    one = find_groups(replace(model, means=np.zeros_like(far), sh=np.zeros_like(model.sh)), WIDE)
    assert lists(one) == [list(range(50))]
