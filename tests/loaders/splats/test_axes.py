"""Spherical harmonics and changes of frame: what is seen does not change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.loaders.splats.axes import axes_of, change_axes
from penstock.loaders.splats.covariance import covariances
from penstock.loaders.splats.harmonics import C0, basis, turned_coefficients
from penstock.loaders.splats.model import check_model
from tests.loaders.splats.splat_builder import random_model

# What renderers have in their sources, by index.
CONSTANTS = [
    0.28209479177387814, -0.4886025119029199, 0.4886025119029199, -0.4886025119029199,
    1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792,
    0.5462742152960396, -0.5900435899266435, 2.890611442640554, -0.4570457994644658,
    0.3731763325901154, -0.4570457994644658, 1.445305721320277, -0.5900435899266435,
]  # fmt: skip


def polynomials(x: float, y: float, z: float) -> list[float]:
    return [
        1, y, z, x, x * y, y * z, 2 * z * z - x * x - y * y, x * z, x * x - y * y,
        y * (3 * x * x - y * y), x * y * z, y * (4 * z * z - x * x - y * y),
        z * (2 * z * z - 3 * x * x - 3 * y * y), x * (4 * z * z - x * x - y * y),
        z * (x * x - y * y), x * (x * x - 3 * y * y),
    ]  # fmt: skip


def directions(count: int, seed: int = 0) -> NDArray[np.float64]:
    d = np.random.default_rng(seed).normal(size=(count, 3))
    return np.asarray(d / np.linalg.norm(d, axis=1, keepdims=True))


def test_the_basis_is_inrias() -> None:
    d = directions(50)
    expected = [np.array(polynomials(*row)) * CONSTANTS for row in d]
    assert np.allclose(basis(d), expected, atol=1e-14)
    assert basis(d, 0).shape == (50, 1) and basis(d, 2).shape == (50, 9)
    assert C0 == CONSTANTS[0]


def test_the_basis_is_orthonormal() -> None:
    """Over a product grid that integrates polynomials of degree 6 exactly."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    angles = np.arange(16) * np.pi / 8
    d, w = [], []
    for z, weight in zip(nodes, weights, strict=True):
        r = np.sqrt(1 - z * z)
        d += [[r * np.cos(a), r * np.sin(a), z] for a in angles]
        w += [weight * np.pi / 8] * 16
    values = basis(np.array(d))
    assert np.allclose(values.T @ (values * np.array(w)[:, None]), np.eye(16), atol=1e-12)


def signed_permutations() -> list[NDArray[np.float64]]:
    return [
        np.eye(3)[list(order)] * np.array(signs, float)[:, None]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]


@pytest.mark.parametrize("axes", signed_permutations(), ids=lambda a: str(a.astype(int).tolist()))
def test_colours_and_shapes_follow_their_scene(axes: NDArray[np.float64]) -> None:
    model = random_model(6, 3, dynamic=True)
    turned = check_model(change_axes(model, axes), "turned")
    d = directions(20)
    seen = np.einsum("mk,nkc->nmc", basis(d), model.sh)
    assert np.allclose(np.einsum("mk,nkc->nmc", basis(d @ axes.T), turned.sh), seen, atol=1e-5)
    assert np.allclose(turned.means, model.means @ axes.T, atol=1e-6)
    assert model.motion is not None and turned.motion is not None
    assert np.allclose(turned.motion.velocities, model.motion.velocities @ axes.T, atol=1e-6)
    rows, columns = np.triu_indices(3)
    for before, after in zip(
        covariances(model.scales, model.rotations),
        covariances(turned.scales, turned.rotations),
        strict=True,
    ):
        full = np.zeros((3, 3))
        full[rows, columns] = full[columns, rows] = before
        assert np.allclose((axes @ full @ axes.T)[rows, columns], after, rtol=1e-3, atol=1e-6)


def test_a_general_rotation_turns_colours_too() -> None:
    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    d, sh = directions(30), np.random.default_rng(4).normal(size=16)
    turned = turned_coefficients(axes) @ sh
    assert np.allclose(basis(d @ axes.T) @ turned, basis(d) @ sh, atol=1e-9)


def test_sign_flips_are_exact() -> None:
    """Half a turn about x, SPZ's frame: each coefficient keeps its size."""
    m = turned_coefficients(np.diag([1.0, -1, -1]))
    signs = [1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1]
    assert np.array_equal(m, np.diag(signs).astype(float))


def test_the_models_own_frame_changes_nothing() -> None:
    model = random_model(3, 2)
    own = axes_of(np.array([1.0, 0, 0]), np.array([0, -1.0, 0]), np.array([0, 0, 1.0]))
    assert change_axes(model, own) is model
