"""From covariances to scales and rotations: gradients against differences."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.export.omg4.shape_gradients import shape_gradients
from penstock.loaders.splats.quaternions import matrices


def covariance(scales: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """[n, 6] in double."""
    unit = rotations / np.linalg.norm(rotations, axis=1, keepdims=True)
    factor = matrices(unit) * scales[:, None, :]
    full = factor @ factor.transpose(0, 2, 1)
    return np.asarray(full[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]])


def test_gradients_are_those_of_differences() -> None:
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(size=(20, 3)))
    rotations = rng.normal(size=(20, 4))
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    by = rng.normal(size=(20, 6))
    by_scale, by_rotation = shape_gradients(scales, rotations, by)
    step = 1e-6
    for axis in range(3):
        factor = np.ones(3)
        factor[axis] = np.exp(step)
        up, down = covariance(scales * factor, rotations), covariance(scales / factor, rotations)
        expected = ((up - down) * by).sum(axis=1) / (2 * step)
        assert by_scale[:, axis] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for axis in range(4):
        way = np.zeros(4)
        way[axis] = step
        up, down = covariance(scales, rotations + way), covariance(scales, rotations - way)
        expected = ((up - down) * by).sum(axis=1) / (2 * step)
        assert by_rotation[:, axis] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_no_splats() -> None:
    by_scale, by_rotation = shape_gradients(np.zeros((0, 3)), np.zeros((0, 4)), np.zeros((0, 6)))
    assert by_scale.shape == (0, 3) and by_rotation.shape == (0, 4)
