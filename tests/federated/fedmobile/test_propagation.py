"""Label propagation against the closed form on a dense matrix, and on clusters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.federated.fedmobile import propagation
from penstock.federated.fedmobile.propagation import NEIGHBOURS, REACH, propagated

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


def test_of_many_windows_some_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "MOST", 40)
    points, of = clusters(100)
    found = propagated(points, np.where(np.arange(100) < 30, of, -1), 3)
    even = np.ptp(found, axis=1) < 1e-6
    assert even[:30].sum() == 10 and even[30:].sum() == 50, "20 with a label and 20 without"
    assert (found.argmax(axis=1) == of)[~even].mean() > 0.9


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
