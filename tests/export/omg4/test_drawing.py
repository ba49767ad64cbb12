"""Colours in numpy against those of the native core, and their gradient."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.export.omg4.drawing import by_harmonics, colours
from penstock.loaders.splats.model import select
from penstock.runtime.splats.camera import look_at
from penstock.runtime.splats.renderer import SplatRenderer
from tests.runtime.splats.reference import splats_of
from tests.runtime.splats.scenes import random_model


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_colours(degree: int) -> None:
    model, eye = random_model(300, degree=degree, seed=degree), np.array([0.4, -3.0, 2.0])
    found, _ = colours(model.sh, model.means, eye)
    np.testing.assert_allclose(found, splats_of(model, eye).colours, atol=1e-6)
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
        expected = colours(model.sh, model.means, camera.eye)[0][0]
        np.testing.assert_allclose(image[4, 4], 0.99 * expected, atol=2e-3)


def test_gradient() -> None:
    model, eye = random_model(50, degree=3, seed=1), np.array([2.0, 1.0, 0.5])
    towards = np.random.default_rng(2).normal(size=(50, 3))
    seen, functions = colours(model.sh, model.means, eye)
    gradient = by_harmonics(towards.astype(np.float32), seen, functions)
    assert gradient.shape == model.sh.shape
    draw = np.random.default_rng(3)
    for _ in range(20):
        i, k, c = draw.integers(50), draw.integers(16), draw.integers(3)
        changed = model.sh.copy()
        changed[i, k, c] += 1e-3
        more = (colours(changed, model.means, eye)[0].astype(np.float64) * towards).sum()
        less = (seen.astype(np.float64) * towards).sum()
        if seen[i, c] > 0.01:
            assert (more - less) / 1e-3 == pytest.approx(gradient[i, k, c], abs=2e-3)
        elif seen[i, c] == 0:
            assert gradient[i, k, c] == 0


def test_a_camera_in_a_splat() -> None:
    """No direction: the constant term alone, and nothing that is not finite."""
    model = random_model(3, degree=3)
    assert np.isfinite(colours(model.sh, model.means, model.means[1])[0]).all()
