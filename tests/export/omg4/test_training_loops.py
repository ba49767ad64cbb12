"""Training's native loops against plain numpy, and their gradients against differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock import _native
from penstock.export.omg4.training_loops import TrainingLoops
from penstock.loaders.splats import covariance as slow
from penstock.loaders.splats.harmonics import basis
from penstock.loaders.splats.model import SplatModel
from penstock.loaders.splats.quaternions import matrices
from tests.export.omg4.scenes import cameras, cloud

SOME = np.array([0, 3, 4, 11, 19], np.intp)


@pytest.fixture
def loops() -> TrainingLoops:
    return TrainingLoops(1)


def covariance(scales: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """[n, 6] in double."""
    unit = rotations / np.linalg.norm(rotations, axis=1, keepdims=True)
    factor = matrices(unit) * scales[:, None, :]
    full = factor @ factor.transpose(0, 2, 1)
    return np.asarray(full[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]])


def shaped(seed: int, count: int = 20) -> SplatModel:
    rng = np.random.default_rng(seed)
    model = cloud(count, seed=seed, coefficients=16)
    return replace(model, scales=np.exp(rng.normal(size=(count, 3))).astype(np.float32))


def test_columns_and_covariances_of_some(loops: TrainingLoops) -> None:
    model = shaped(0)
    assert (loops.columns(model.means, SOME) == model.means[SOME].T).all()
    expected = slow.covariances(model.scales[SOME], model.rotations[SOME])
    np.testing.assert_allclose(loops.covariances(model, SOME), expected.T, rtol=1e-5, atol=1e-5)


def test_shape_gradients_are_those_of_differences(loops: TrainingLoops) -> None:
    model = shaped(1)
    scales, rotations = model.scales[SOME].astype(np.float64), model.rotations[SOME]
    rotations = rotations.astype(np.float64)
    by = np.random.default_rng(2).normal(size=(6, len(SOME))).astype(np.float32)
    by_scale, by_rotation = loops.shape_gradients(model, SOME, by)
    step = 1e-6
    for axis in range(3):
        factor = np.ones(3)
        factor[axis] = np.exp(step)
        up, down = covariance(scales * factor, rotations), covariance(scales / factor, rotations)
        expected = ((up - down) * by.T).sum(axis=1) / (2 * step)
        assert by_scale[:, axis] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for axis in range(4):
        way = np.zeros(4)
        way[axis] = step
        up, down = covariance(scales, rotations + way), covariance(scales, rotations - way)
        expected = ((up - down) * by.T).sum(axis=1) / (2 * step)
        assert by_rotation[:, axis] == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("coefficients", [1, 4, 9, 16])
def test_colours_and_their_gradient(loops: TrainingLoops, coefficients: int) -> None:
    model = cloud(20, seed=3, coefficients=coefficients)
    model.sh[:, 0] -= 1.8  # some are cut off
    camera = cameras(3)[1]
    seen = model.means[SOME] - camera.eye
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    functions = basis(seen, {1: 0, 4: 1, 9: 2, 16: 3}[coefficients])
    plain = np.einsum("mk,mkc->mc", functions, model.sh[SOME]) + 0.5
    colour = loops.colours(model, camera, SOME)
    np.testing.assert_allclose(colour.T, np.maximum(plain, 0), atol=1e-6)
    by = np.random.default_rng(4).normal(size=(3, len(SOME))).astype(np.float32)
    flows = by.T * (plain > 0)
    assert 0 < (plain > 0).sum() < plain.size
    np.testing.assert_allclose(
        loops.harmonics_gradients(model, camera, SOME, colour, by),
        functions[:, :, None] * flows[:, None, :],
        atol=1e-6,
    )


def test_rows_are_added(loops: TrainingLoops) -> None:
    total = np.ones((20, 2, 3), np.float32)
    part = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
    expected = total.copy()
    expected[SOME] += part
    loops.add_rows(total, SOME, part)
    assert (total == expected).all()


def test_threads_do_not_change_anything() -> None:
    model, rows = shaped(5, 3000), np.arange(0, 3000, 2, dtype=np.intp)
    camera = cameras(3)[2]
    by = np.random.default_rng(6).normal(size=(6, len(rows))).astype(np.float32)
    found = []
    for threads in (1, 3):
        loops = TrainingLoops(threads)
        total = np.zeros((3000, 4), np.float32)
        by_scale, by_rotation = loops.shape_gradients(model, rows, by)
        loops.add_rows(total, rows, by_rotation)
        values, first, second = (total.copy() for _ in range(3))
        second = np.abs(second)
        steps = np.zeros(3000, np.int32)
        loops.adam(values, first, second, steps, rows, total, 0.1)
        colour = loops.colours(model, camera, rows)
        found.append((
            loops.columns(model.means, rows), loops.covariances(model, rows), by_scale, total,
            values, first, second, steps, colour,
            loops.harmonics_gradients(model, camera, rows, colour, by[:3]),
        ))  # fmt: skip
    for one, other in zip(*found, strict=True):
        assert (one == other).all()


def test_no_splats(loops: TrainingLoops) -> None:
    model, none = cloud(0), np.zeros(0, np.intp)
    camera = cameras(1)[0]
    assert loops.columns(model.means, none).shape == (3, 0)
    assert loops.covariances(model, none).shape == (6, 0)
    colour = loops.colours(model, camera, none)
    assert colour.shape == (3, 0)
    assert loops.harmonics_gradients(model, camera, none, colour, colour).shape == (0, 4, 3)
    by_scale, by_rotation = loops.shape_gradients(model, none, np.zeros((6, 0), np.float32))
    assert by_scale.shape == (0, 3) and by_rotation.shape == (0, 4)


@pytest.mark.parametrize("rows", [[-1], [20], [3, 3], [4, 2], [2**62]])
def test_rows_out_of_order_or_range_are_refused(rows: list[int]) -> None:
    native = _native.SplatTraining(1)
    out = np.empty((3, len(rows)), np.float32)
    with pytest.raises(ValueError, match="expected ascending numbers under 20"):
        native.columns(np.zeros((20, 3), np.float32), np.array(rows, np.int64), out)


def test_other_shapes_are_refused() -> None:
    native, model = _native.SplatTraining(1), cloud(20)
    rows, three = SOME.astype(np.int64), np.zeros((3, 5), np.float32)
    with pytest.raises(ValueError, match=r"out is \(3, 5, ...\), expected \(6, 5, ...\)"):
        native.covariances(model.scales, model.rotations, rows, three)
    with pytest.raises(ValueError, match=r"rotations is \(20, 3, ...\), expected \(20, 4, ...\)"):
        native.covariances(model.scales, model.scales, rows, three)
    with pytest.raises(ValueError, match="sh has 5 coefficients"):
        native.colours(np.zeros((20, 5, 3), np.float32), model.means, (0, 0, 0), rows, three)
    with pytest.raises(ValueError, match="steps has 3 rows, expected 20"):
        grid = np.zeros((20, 3), np.float32)
        native.adam(grid, grid, grid, np.zeros(3, np.int32), rows, grid, 0.1)
    with pytest.raises(ValueError, match=r"steps are 0 to 2\^24"):
        native.adam(grid, grid, grid, np.full(20, -1, np.int32), rows, grid, 0.1)
