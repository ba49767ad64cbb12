"""Adam: the steps of its definition, for the rows that have a gradient."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.export.omg4.adam import Adam, rows_of
from penstock.export.omg4.training_loops import TrainingLoops


def test_steps_are_those_of_the_definition() -> None:
    values = np.array([[1.0, -2.0]], np.float32)
    optimizer = Adam(values, 0.1, TrainingLoops(1))
    x, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t in range(1, 6):
        g = np.array([0.3 * t, -1.0])
        optimizer.step(np.array([0]), g[None].astype(np.float32))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x -= 0.1 * (m / (1 - 0.9**t)) / np.sqrt(v / (1 - 0.999**t))
        assert values[0] == pytest.approx(x, rel=1e-4)


def test_other_rows_stay_and_start_when_they_are_first_seen() -> None:
    values = np.zeros((3, 2), np.float32)
    optimizer = Adam(values, 0.5, TrainingLoops(1))
    optimizer.step(np.array([1]), np.ones((3, 2), np.float32))
    assert (values[[0, 2]] == 0).all() and values[1] == pytest.approx(-0.5, rel=1e-4)
    optimizer.step(np.array([2]), np.full((3, 2), 9, np.float32), factor=0.5)
    assert values[2] == pytest.approx(-0.25, rel=1e-4)


def test_gradients_that_are_not_finite_count_as_nothing() -> None:
    values = np.zeros((2, 1), np.float32)
    optimizer = Adam(values, 0.5, TrainingLoops(1))
    optimizer.step(np.array([0, 1]), np.array([[np.nan], [np.inf]], np.float32))
    assert (values == 0).all()


def test_rows_that_any_view_saw() -> None:
    assert rows_of((5, 2), [np.array([3, 1]), np.array([3])]).tolist() == [1, 3]
    assert rows_of((5,), []).tolist() == []
