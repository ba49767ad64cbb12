"""Colours that training sees against those that the player draws, and their gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.export.omg4.training_loops import TrainingLoops
from penstock.loaders.splats.model import SplatModel, select
from penstock.runtime.splats.camera import Camera, look_at
from penstock.runtime.splats.renderer import SplatRenderer
from tests.runtime.splats.reference import splats_of
from tests.runtime.splats.scenes import random_model

LOOPS = TrainingLoops(1)


def seen_from(eye: tuple[float, float, float]) -> Camera:
    return look_at(eye, (0, 0, 0), width=8, height=8)


def colours(model: SplatModel, camera: Camera) -> np.ndarray:
    """[n, 3]."""
    return LOOPS.colours(model, camera, np.arange(model.count)).T


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_colours(degree: int) -> None:
    model, camera = random_model(300, degree=degree, seed=degree), seen_from((0.4, -3.0, 2.0))
    found = colours(model, camera)
    np.testing.assert_allclose(found, splats_of(model, camera.eye).colours, atol=1e-6)
    assert degree == 0 or found.min() == 0  # some are cut off


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_one_large_splat_has_its_colour(degree: int) -> None:
    """The native core's, read off a pixel that one splat covers as far as any does: 99 %."""
    for seed in range(4):
        model = select(random_model(1, degree=degree, seed=seed, size=3.0), slice(0, 1))
        model.opacities[:] = 1
        model.scales[:] = 3
        camera = look_at(model.means[0] + [0, 0, -4], model.means[0], width=9, height=9)
        image = SplatRenderer(model).render(camera).image
        expected = colours(model, camera)[0]
        np.testing.assert_allclose(image[4, 4], 0.99 * expected, atol=2e-3)


def test_gradient() -> None:
    model, camera = random_model(50, degree=3, seed=1), seen_from((2.0, 1.0, 0.5))
    towards = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
    seen, every = colours(model, camera), np.arange(50)
    gradient = LOOPS.harmonics_gradients(model, camera, every, seen.T, towards.T)
    assert gradient.shape == model.sh.shape
    draw = np.random.default_rng(3)
    for _ in range(20):
        i, k, c = draw.integers(50), draw.integers(16), draw.integers(3)
        changed = replace(model, sh=model.sh.copy())
        changed.sh[i, k, c] += 1e-3
        more = (colours(changed, camera).astype(np.float64) * towards).sum()
        less = (seen.astype(np.float64) * towards).sum()
        if seen[i, c] > 0.01:
            assert (more - less) / 1e-3 == pytest.approx(gradient[i, k, c], abs=2e-3)
        elif seen[i, c] == 0:
            assert gradient[i, k, c] == 0


def test_a_camera_in_a_splat() -> None:
    """No direction: the constant term alone, and nothing that is not finite."""
    model = random_model(3, degree=3)
    model.means[1] = (0.5, -0.25, 2.0)
    camera = seen_from((0.5, -0.25, 2.0))
    assert (camera.eye == model.means[1]).all()
    assert np.isfinite(colours(model, camera)).all()
