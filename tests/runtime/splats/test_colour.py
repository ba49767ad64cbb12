"""Colours in numpy against those of the native core, and their gradient."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.loaders.splats.model import select
from penstock.runtime.splats.camera import look_at
from penstock.runtime.splats.colour import coefficient_gradient, colours_from
from penstock.runtime.splats.renderer import SplatRenderer
from tests.runtime.splats.reference import splats_of
from tests.runtime.splats.scenes import random_model


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_colours(degree: int) -> None:
    model, eye = random_model(300, degree=degree, seed=degree), np.array([0.4, -3.0, 2.0])
    found = colours_from(eye, model.means, model.sh)
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
        expected = colours_from(camera.eye, model.means, model.sh)[0]
        np.testing.assert_allclose(image[4, 4], 0.99 * expected, atol=2e-3)


def test_gradient() -> None:
    model, eye = random_model(50, degree=3, seed=1), np.array([2.0, 1.0, 0.5])
    towards = np.random.default_rng(2).normal(size=(50, 3))
    colours = colours_from(eye, model.means, model.sh)
    gradient = coefficient_gradient(eye, model.means, colours, towards, 16)
    assert gradient.shape == model.sh.shape
    draw = np.random.default_rng(3)
    for _ in range(20):
        i, k, c = draw.integers(50), draw.integers(16), draw.integers(3)
        changed = model.sh.astype(np.float64)
        changed[i, k, c] += 1e-3
        more = (colours_from(eye, model.means, changed).astype(np.float64) * towards).sum()
        less = (colours.astype(np.float64) * towards).sum()
        if colours[i, c] > 0.01:
            assert (more - less) / 1e-3 == pytest.approx(gradient[i, k, c], abs=2e-3)
        elif colours[i, c] == 0:
            assert gradient[i, k, c] == 0


def test_a_camera_in_a_splat() -> None:
    """No direction: the constant term alone, and nothing that is not finite."""
    model = random_model(3, degree=3)
    assert np.isfinite(colours_from(model.means[1], model.means, model.sh)).all()
