"""What is kept: by the SD score, and by what is low in both space and time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.errors import UsageError
from penstock.export.omg4.pruning import keep_drawable, keep_high
from penstock.export.omg4.sampling import keep_best
from penstock.export.omg4.scores import Scores, importance, sd_scores
from tests.export.omg4.scenes import cloud

VALUES = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 100))


@given(values=VALUES, share=st.floats(0.01, 1))
def test_the_best_are_kept(values: np.ndarray, share: float) -> None:
    kept = keep_best(values, share)
    assert len(kept) == min(len(values), max(1, round(share * len(values))))
    assert (np.diff(kept) > 0).all()
    others = np.delete(values, kept)
    assert not len(others) or values[kept].min() >= others.max()


def test_scores_that_cannot_be() -> None:
    assert keep_best(np.zeros(0), 0.2).tolist() == []
    assert keep_best(np.array([1.0, 1.0, 1.0]), 0.5).tolist() == [0, 1]
    with pytest.raises(UsageError, match="share of 0"):
        keep_best(np.ones(3), 0)
    with pytest.raises(UsageError, match="not finite"):
        keep_best(np.array([1, np.nan]), 0.5)


def test_only_what_is_low_in_both_is_dropped() -> None:
    space = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    time = np.array([5.0, 1.0, 2.0, 3.0, 4.0])
    # The 0.8-quantiles are 4.2 in both: kept is 4 for space, 0 for time.
    assert keep_high(Scores(space, time, space), 0.8).tolist() == [0, 4]
    assert keep_high(Scores(space, None, space), 0.8).tolist() == [4]
    # Reaching the quantile is enough in space, not in time.
    assert keep_high(Scores(space * 0, space * 0, space), 0.5).tolist() == [0, 1, 2, 3, 4]
    assert keep_high(Scores(space, space * 0, space), 1.0).tolist() == [4]
    assert keep_high(Scores(space[:0], None, space[:0]), 0.8).tolist() == []
    with pytest.raises(UsageError, match="quantile is 1.5"):
        keep_high(Scores(space, time, space), 1.5)


def test_what_no_camera_can_see_is_dropped() -> None:
    model = cloud(5)
    assert model.motion is not None
    hidden = replace(
        model,
        opacities=np.array([0.5, 0.003, 0.5, 0.5, 1], np.float32),
        motion=replace(
            model.motion,
            t_centers=np.array([1, 1, -1, 3, 2.5], np.float32),
            t_sigmas=np.array([0.1, 0.1, 0.3, 0.5, 0.1], np.float32),
        ),
    )
    # 1 is too faint; 2 ends at -1 + 2.45 * 0.3 < 0; 3 begins at 3 - 2.45 * 0.5 < 2; 4 at 2.25.
    assert keep_drawable(hidden).tolist() == [0, 3]


def test_the_paper_s_score_and_ours() -> None:
    space = np.array([0.0, 1.0, 2.0, 4.0])
    time = np.array([-4.0, 0.0, 4.0, 0.0])
    signed = sd_scores(Scores(space, time, space), "signed")
    assert signed == pytest.approx([0, 0.25 * 0.5, 0.5 * 1, 1 * 0.5])
    ours = sd_scores(Scores(space, np.abs(time), space), "absolute")
    assert ours == pytest.approx([0, 0.25 * 0.5, 0.5 * 1, 1 * 0.5])
    assert sd_scores(Scores(space, None, space), "absolute") == pytest.approx(space / 4)
    flat = Scores(np.ones(3), np.zeros(3), np.zeros(3))
    assert sd_scores(flat, "absolute") == pytest.approx([0.5] * 3)
    assert sd_scores(flat, "signed") == pytest.approx([1] * 3)
    assert importance(Scores(space, None, space)) == pytest.approx(np.sqrt(space))
