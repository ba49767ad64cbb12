"""Label propagation against the closed form on a dense matrix, and on clusters."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.federated.fedmobile import propagation
from penstock.federated.fedmobile.propagation import (
    MOST,
    NEIGHBOURS,
    REACH,
    Propagation,
    propagated,
    windows_within,
)

CENTRES = np.array([[0, 0], [6, 0], [0, 6]])


def clusters(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Windows [n, 2] around three centres, and which each is of."""
    rng = np.random.default_rng(seed)
    of = np.arange(n) % 3
    return (CENTRES[of] + rng.normal(size=(n, 2))).astype(np.float32), of


def closed_form(points: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(I - alpha S)^-1 Y of Zhou et al., with the graph made by loops."""
    n = len(points)
    squares = ((points[:, None].astype(np.float64) - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    k = min(NEIGHBOURS, n - 1)
    nearest = [np.argsort(row)[:k] for row in squares]
    width = np.mean([squares[i, nearest[i]].mean() for i in range(n)])
    w = np.zeros((n, n))
    for i in range(n):
        for j in nearest[i]:
            w[i, j] = w[j, i] = np.exp(-squares[i, j] / width)
    scale = 1 / np.sqrt(w.sum(axis=1))
    known = np.flatnonzero(labels >= 0)
    given_labels = np.zeros((n, classes))
    given_labels[known, labels[known]] = 1
    s = scale[:, None] * w * scale
    found = np.linalg.solve(np.eye(n) - REACH * s, given_labels)
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def test_it_is_the_closed_form() -> None:
    points, of = clusters(60)
    points *= 0.4  # so that every window is reached by every label
    labels = np.where(np.arange(60) < 6, of, -1)
    np.testing.assert_allclose(
        propagated(points, labels, 3), closed_form(points, labels, 3), atol=0.02
    )


def test_one_label_a_cluster_is_enough() -> None:
    points, of = clusters(300)
    labels = np.full(300, -1)
    labels[:3] = of[:3]
    assert (propagated(points, labels, 3).argmax(axis=1) == of).mean() > 0.98


def test_of_many_windows_some_stay_out() -> None:
    points, of = clusters(100)
    found = propagated(points, np.where(np.arange(100) < 30, of, -1), 3, most=40)
    even = np.ptp(found, axis=1) < 1e-6
    assert even[:30].sum() == 10 and even[30:].sum() == 50, "20 with a label and 20 without"
    assert (found.argmax(axis=1) == of)[~even].mean() > 0.9


@pytest.mark.parametrize("size", [(600, 43, 6), (600, 4, 3), (300, 300, 10), (100, 20, 3000)])
def test_it_takes_the_memory_that_was_reckoned(size: tuple[int, int, int]) -> None:
    n, features, classes = size
    rng = np.random.default_rng(0)
    windows = rng.normal(size=(n, features)).astype(np.float32)
    labels = np.where(np.arange(n) < 60, rng.integers(0, classes, n), -1)
    tracemalloc.start()
    found = propagated(windows, labels, classes)
    peak = tracemalloc.get_traced_memory()[1] - found.nbytes
    tracemalloc.stop()
    assert windows_within(peak, features, classes) <= n
    assert windows_within(2 * peak, features, classes) >= n
    assert windows_within(1 << 20, features, 1 << 16) < 2
    assert windows_within(1 << 40, features, classes) == MOST


def test_it_stops_when_it_is_asked_to() -> None:
    points, of = clusters(300)
    labels = np.where(np.arange(300) < 30, of, -1)
    for after in (0, 3, 20):  # in the graph's blocks, and in the iteration
        answers = [True] + [False] * after
        assert np.ptp(propagated(points, labels, 3, should_stop=answers.pop)) < 1e-6
        assert not answers, "asked to the end, and no more"


def test_the_same_windows_and_labels_are_reckoned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def watched(*given: Any) -> Any:
        made.append(len(given[0]))
        return propagated(*given)

    monkeypatch.setattr(propagation, "propagated", watched)
    points, of = clusters(60)
    labels = np.where(np.arange(60) < 6, of, -1)
    more = np.where(np.arange(60) < 9, of, -1)
    one = Propagation()
    one(points, labels, 3, propagation.MOST, [True, False].pop)
    first = one(points, labels, 3)
    assert one(points, labels, 3) is first and made == [60, 60], "what was stopped is not kept"
    np.testing.assert_array_equal(first, propagated(points, labels, 3))
    for other in ((points, more, 3), (points, labels, 4), (points + 1, labels, 3)):
        one(*other)
    one(points, labels, 3, 40)
    one(points, labels, 3)
    assert len(made) == 7 and len(one._known) == 1
    many = Propagation(2 * first.nbytes)
    for given_labels in (labels, more, labels, more):
        many(points, given_labels, 3)
    assert len(made) == 9
    many(points + 1, labels, 3)
    assert len(many._known) == 2


@given(st.integers(0, 9), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_whatever_there_is_it_gives_probabilities(n: int, known: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    windows = rng.normal(size=(n, 4)).astype(np.float32)
    windows[n // 2 :] = windows[: n - n // 2][::-1]  # equal ones too
    labels = np.where(np.arange(n) < known, rng.integers(0, 3, n), -1)
    found = propagated(windows, labels, 3)
    assert found.shape == (n, 3) and np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=1), np.ones(n), rtol=1e-5)
    if n and not (labels >= 0).any():
        assert np.ptp(found) < 1e-6
