"""Covariances, quaternions and the slices of 4D Gaussians, against textbook arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.loaders.splats.covariance import (
    BLOCK,
    covariances,
    decompose,
    join_rotors,
    rotor_matrices,
    rotor_quaternions,
    slice_rotors,
)
from penstock.loaders.splats.quaternions import (
    expand_smallest,
    from_matrices,
    keep_smallest,
    matrices,
    multiply,
)
from tests.loaders.splats.splat_builder import random_model, same_rotations

SEEDS = st.integers(0, 2**32 - 1)


def unit(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    q = rng.normal(size=shape)
    return np.asarray(q / np.linalg.norm(q, axis=-1, keepdims=True))


def paper_matrix(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """The two isoclinic matrices, multiplied and flipped, as the paper's notes write them."""
    a, b, c, d = left
    p, q, r, s = right
    m_left = np.array([[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]])
    m_right = np.array([[p, q, r, s], [-q, p, -s, r], [-r, s, p, -q], [-s, -r, q, p]])
    return np.asarray((m_left @ m_right)[::-1, ::-1])


@given(SEEDS)
def test_quaternions_turn_vectors_as_sandwiches_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, v = unit(rng, 1, 4), rng.normal(size=(1, 3))
    pure = np.concatenate([np.zeros((1, 1)), v], axis=1)
    turned = multiply(multiply(q, pure), q * [1, -1, -1, -1])
    assert np.allclose(matrices(q)[0] @ v[0], turned[0, 1:])


@pytest.mark.parametrize(
    "special",
    [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 1, -1, 0]],
)
def test_matrices_and_back(special: list[int]) -> None:
    q = np.array([special], float) / np.linalg.norm(special)
    rng = np.random.default_rng(1)
    q = np.concatenate([q, unit(rng, 100, 4), q + 1e-9 * rng.normal(size=(20, 4))])
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    assert same_rotations(from_matrices(matrices(q)), q, 1e-12)


@given(SEEDS)
def test_smallest_three_and_back(seed: int) -> None:
    q = unit(np.random.default_rng(seed), 50, 4)
    largest, three = keep_smallest(q)
    assert (np.abs(three) <= np.sqrt(0.5) + 1e-12).all()
    assert same_rotations(expand_smallest(largest, three), q, 1e-12)


def test_three_that_are_too_long_become_a_unit_quaternion() -> None:
    q = expand_smallest(np.array([2]), np.array([[0.7, 0.7, 0.7]]))
    assert q[0, 2] == 0 and np.isclose(np.linalg.norm(q), 1)


def test_covariances_are_those_of_points() -> None:
    model = random_model(1)
    samples = np.random.default_rng(0).normal(size=(200_000, 3)) * model.scales[0]
    points = samples @ matrices(model.rotations)[0].T
    xx, xy, xz, yy, yz, zz = covariances(model.scales, model.rotations)[0]
    expected = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
    assert np.allclose(np.cov(points.T), expected, rtol=0.03, atol=2e-3 * float(xx + yy + zz))


@given(SEEDS)
def test_decomposed_covariances_are_the_same(seed: int) -> None:
    model = random_model(20, seed=seed)
    factor = matrices(model.rotations) * model.scales[:, None, :].astype(float)
    scales, rotations = decompose(factor @ factor.transpose(0, 2, 1))
    expected = covariances(model.scales, model.rotations)
    assert np.allclose(covariances(scales, rotations), expected, rtol=1e-4, atol=1e-6)
    assert np.allclose(np.linalg.det(matrices(rotations)), 1)
    # float32 quaternions are unit ones to 1e-7, of the largest variance
    assert np.allclose(scales**2, np.sort(model.scales, axis=1) ** 2, rtol=1e-3, atol=1e-6)


@given(SEEDS)
def test_rotor_matrices_are_the_papers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = unit(rng, 7, 4), unit(rng, 7, 4)
    got = rotor_matrices(left, right)
    for i in range(7):
        assert np.allclose(got[i], paper_matrix(left[i], right[i]))
    assert np.allclose(got @ got.transpose(0, 2, 1), np.eye(4))
    assert np.allclose(np.linalg.det(got), 1)


@given(SEEDS)
def test_rotor_quaternions_are_the_inverse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotations = rotor_matrices(unit(rng, 9, 4), unit(rng, 9, 4))
    assert np.allclose(rotor_matrices(*rotor_quaternions(rotations)), rotations)


@given(SEEDS)
def test_slices_are_the_schur_complement(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = unit(rng, 12, 4), unit(rng, 12, 4)
    scales = np.exp(rng.uniform(-3, 1, (12, 4)))
    sliced = slice_rotors(scales, left, right)
    got = covariances(sliced.scales, sliced.rotations)
    for i in range(12):
        factor = paper_matrix(left[i], right[i]) * scales[i]
        full = factor @ factor.T
        time = full[3, 3]
        at_once = full[:3, :3] - np.outer(full[:3, 3], full[:3, 3]) / time
        rows, columns = np.triu_indices(3)
        assert np.allclose(got[i], at_once[rows, columns], rtol=1e-4, atol=1e-5)
        assert np.allclose(sliced.velocities[i], full[:3, 3] / time, rtol=1e-5, atol=1e-6)
        assert np.isclose(sliced.t_sigmas[i], np.sqrt(time), rtol=1e-6)


def test_thin_splats_keep_their_smallest_scale() -> None:
    """A difference of the covariance's numbers would leave noise of 1e-8 here."""
    half = 0.3
    left = np.array([[np.cos(half), 0, 0, np.sin(half)]])
    right = left * [1, -1, -1, -1]  # x turns towards t by twice the half
    sliced = slice_rotors(np.array([[1e-5, 2e-5, 3e-5, 10.0]]), left, right)
    assert abs(sliced.velocities[0, 0]) > 0.1
    assert (sliced.scales > 5e-6).all() and (sliced.scales < 4e-5).all()


@given(SEEDS)
def test_joined_rotors_slice_to_the_same_splats(seed: int) -> None:
    model = random_model(15, dynamic=True, seed=seed)
    motion = model.motion
    assert motion is not None
    joined = join_rotors(model.scales, model.rotations, motion.velocities, motion.t_sigmas)
    sliced = slice_rotors(*joined)
    expected = covariances(model.scales, model.rotations)
    got = covariances(sliced.scales, sliced.rotations)
    assert np.allclose(got, expected, rtol=1e-3, atol=3e-6 * np.abs(expected).max())
    assert np.allclose(sliced.velocities, motion.velocities, rtol=1e-4, atol=1e-5)
    assert np.allclose(sliced.t_sigmas, motion.t_sigmas, rtol=1e-5)


def test_no_splats_and_more_than_a_block_of_them() -> None:
    none = slice_rotors(np.empty((0, 4)), np.empty((0, 4)), np.empty((0, 4)))
    assert none.scales.shape == (0, 3) and covariances(none.scales, none.rotations).shape == (0, 6)
    count = BLOCK + 3
    ones = np.tile([1.0, 0, 0, 0], (count, 1))
    many = slice_rotors(np.tile([1.0, 2, 3, 4], (count, 1)), ones, ones)
    assert np.allclose(many.scales, [1, 2, 3]) and np.allclose(many.t_sigmas, 4)
    assert not many.velocities.any()
