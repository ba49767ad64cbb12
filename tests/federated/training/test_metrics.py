"""Metrics against slow references that count one window after another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.federated.training import metrics

CLASSES = 4
pairs = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), max_size=40)


def slow_macro_f1(found: list[tuple[int, int]]) -> float:
    scores = []
    for cls in range(CLASSES):
        right = sum(1 for true, said in found if true == cls == said)
        precision_of = sum(1 for _, said in found if said == cls)
        recall_of = sum(1 for true, _ in found if true == cls)
        if not recall_of:
            continue
        precision = right / precision_of if precision_of else 0.0
        recall = right / recall_of
        total = precision + recall
        scores.append(2 * precision * recall / total if total else 0.0)
    return sum(scores) / len(scores) if scores else 0.0


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_macro_f1_and_accuracy(found: list[tuple[int, int]]) -> None:
    true = np.array([t for t, _ in found], np.int64)
    said = np.array([s for _, s in found], np.int64)
    counts = metrics.confusion(true, said, CLASSES)
    assert counts.sum() == len(found)
    assert metrics.macro_f1(counts) == pytest.approx(slow_macro_f1(found))
    right = sum(t == s for t, s in found) / len(found) if found else 0.0
    assert metrics.accuracy(counts) == pytest.approx(right)
    for cls, f1 in enumerate(metrics.per_class_f1(counts)):
        assert (f1 == metrics.ABSENT) == (cls not in true)


def test_a_class_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match="prediction is outside of 0 to 3"):
        metrics.confusion(np.array([0]), np.array([4]), CLASSES)
    with pytest.raises(UsageError, match="label is outside"):
        metrics.confusion(np.array([-1]), np.array([0]), CLASSES)
    with pytest.raises(UsageError, match="predictions"):
        metrics.confusion(np.array([0, 1]), np.array([0]), CLASSES)


def test_forgetting_by_hand() -> None:
    scores = [[0.8, 0.1, 0.0], [0.6, 0.9, 0.1], [0.7, 0.5, 0.9]]
    # chunk 0: best 0.8, now 0.7; chunk 1: best 0.9 (its row 0 is before it was learned), now 0.5
    assert metrics.forgetting(scores) == pytest.approx((0.1 + 0.4) / 2)
    assert metrics.mean_after_each_chunk(scores) == pytest.approx(
        (0.8 + (0.6 + 0.9) / 2 + (0.7 + 0.5 + 0.9) / 3) / 3
    )
    assert metrics.forgetting([[0.8]]) == 0.0
    assert metrics.forgetting([[0.5], [0.7, 0.6]]) == pytest.approx(-0.2)
    with pytest.raises(UsageError, match="row 1 has 1 entries"):
        metrics.forgetting([[0.5], [0.7]])
