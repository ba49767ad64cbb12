"""Merging by moments: a group's splat has the mass, the middle and the spread of its members."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.export.omg4.groups import Groups
from penstock.export.omg4.moments import masses, merge_moments
from penstock.loaders.splats.covariance import covariances
from penstock.loaders.splats.model import SplatModel, check_model
from penstock.loaders.splats.quaternions import matrices
from tests.export.omg4.scenes import cloud


def all_of(count: int) -> Groups:
    return Groups(np.arange(count), np.array([0, count]))


def draws(model: SplatModel, rng: np.random.Generator) -> np.ndarray:
    """Points (x, y, z, t) of the 4D mixture, in proportion to mass."""
    assert model.motion is not None
    mass = masses(model)
    which = rng.choice(model.count, 400_000, p=mass / mass.sum())
    motion = model.motion
    factor = matrices(model.rotations) * model.scales[:, None, :]
    shape = np.einsum("nij,nj->ni", factor[which], rng.normal(size=(len(which), 3)))
    later = motion.t_sigmas[which] * rng.normal(size=len(which))
    places = model.means[which] + motion.velocities[which] * later[:, None] + shape
    return np.concatenate([places, (motion.t_centers[which] + later)[:, None]], axis=1)


def test_the_moments_are_those_of_the_mixture() -> None:
    model = cloud(5, seed=3, size=0.4)
    merged = merge_moments(model, all_of(5))
    check_model(merged, "merged")
    motion = merged.motion
    assert motion is not None
    points = draws(model, np.random.default_rng(0))
    assert points.mean(axis=0)[:3] == pytest.approx(merged.means[0], abs=0.01)
    assert points.mean(axis=0)[3] == pytest.approx(motion.t_centers[0], abs=0.01)
    spread = np.cov(points.T)
    assert spread[3, 3] == pytest.approx(motion.t_sigmas[0] ** 2, rel=0.02)
    speed = spread[:3, 3] / spread[3, 3]
    assert speed == pytest.approx(motion.velocities[0], abs=0.02)
    shape = spread[:3, :3] - np.outer(speed, speed) * spread[3, 3]
    xx, xy, xz, yy, yz, zz = covariances(merged.scales, merged.rotations)[0]
    assert shape == pytest.approx(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]), abs=0.01)


@pytest.mark.parametrize("moving", [False, True])
def test_one_alone_stays_as_it_is(moving: bool) -> None:
    model = cloud(6, seed=1, moving=moving)
    merged = merge_moments(model, Groups(np.arange(6), np.arange(7)))
    assert merged.means == pytest.approx(model.means, abs=1e-6)
    assert covariances(merged.scales, merged.rotations) == pytest.approx(
        covariances(model.scales, model.rotations), rel=1e-3, abs=1e-7
    )
    assert merged.opacities == pytest.approx(model.opacities, rel=1e-3)
    assert merged.sh == pytest.approx(model.sh, abs=1e-6)
    if moving:
        assert model.motion is not None and merged.motion is not None
        assert merged.motion.velocities == pytest.approx(model.motion.velocities, abs=1e-5)
        assert merged.motion.t_sigmas == pytest.approx(model.motion.t_sigmas, rel=1e-5)


def test_splats_along_a_track_become_one_that_moves_along_it() -> None:
    model = cloud(9, coefficients=1)
    assert model.motion is not None
    times = np.linspace(0, 2, 9, dtype=np.float32)
    way = np.array([0.5, -0.25, 1.0], np.float32)
    track = replace(
        model,
        means=times[:, None] * way,
        scales=np.full((9, 3), 0.05, np.float32),
        opacities=np.full(9, 0.5, np.float32),
        motion=replace(
            model.motion,
            velocities=np.zeros((9, 3), np.float32),
            t_centers=times,
            t_sigmas=np.full(9, 0.002, np.float32),
        ),
    )
    merged = merge_moments(track, all_of(9))
    assert merged.motion is not None
    assert merged.motion.velocities[0] == pytest.approx(way, rel=1e-3)
    assert merged.means[0] == pytest.approx(way, rel=1e-5)  # where it is after one second
    assert merged.scales[0] == pytest.approx([0.05] * 3, rel=0.01)


def test_a_surface_keeps_its_opacity() -> None:
    """Discs next to each other absorb what their merged one does; twins what they do together."""
    model = cloud(2, coefficients=1, moving=False)
    discs = replace(
        model,
        means=np.array([[0, 0, 0], [2, 0, 0]], np.float32),
        scales=np.array([[1, 1, 0.01]] * 2, np.float32),
        rotations=np.array([[1, 0, 0, 0]] * 2, np.float32),
        opacities=np.array([0.6, 0.6], np.float32),
    )
    merged = merge_moments(discs, all_of(2))
    assert np.sort(merged.scales[0]) == pytest.approx([0.01, 1, np.sqrt(2)], rel=1e-4)
    assert merged.opacities[0] == pytest.approx(1 - 0.4 ** (2 / np.sqrt(2)), rel=1e-3)
    same = merge_moments(replace(discs, means=np.zeros((2, 3), np.float32)), all_of(2))
    assert same.opacities[0] == pytest.approx(1 - 0.4**2, rel=1e-4)
    opaque = merge_moments(replace(discs, opacities=np.ones(2, np.float32)), all_of(2))
    assert opaque.opacities[0] > 0.999


def test_no_groups() -> None:
    merged = merge_moments(cloud(3), Groups(np.zeros(0, np.int64), np.zeros(1, np.int64)))
    assert merged.count == 0 and merged.sh.shape == (0, 4, 3)
