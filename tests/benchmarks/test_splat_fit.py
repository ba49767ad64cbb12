"""What the benchmark's model of the truth begins with, and how pictures are compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import splat_fit, splat_truth_scene
from benchmarks.splat_fit import FitSettings, harmonics_seen, moments, surface_model
from benchmarks.splat_metrics import BEST, Shown, psnr, score, ssim
from benchmarks.splat_truth import albedo_of, normals_of, shade
from benchmarks.splat_truth_surface import place, sample
from penstock.loaders.splats.covariance import covariances
from penstock.loaders.splats.harmonics import basis

COARSE = FitSettings(spacing=0.12, tolerance=0.02, degree=2)
ACTORS = {actor.name: actor for actor in splat_truth_scene.actors()}


def test_straight_pieces_follow_every_path() -> None:
    """At the middle between two pieces each is off the path by no more than was asked for."""
    for name in ("straight", "circle", "spinning", "rod"):
        actor = ACTORS[name]
        found = sample(actor.at(0.0), 0.1)
        pieces = list(moments(actor, found, 0.01))
        for n, (center, sigma) in enumerate(pieces):
            apart = sigma / splat_fit.OVERLAP if len(pieces) > 1 else 2.0
            points, _ = place(actor.at(center), found)
            step = 1e-4
            ahead, _ = place(actor.at(center + step), found)
            behind, _ = place(actor.at(center - step), found)
            velocity = (ahead - behind) / (2 * step)
            for away in (-apart / 2, apart / 2):
                truth, _ = place(actor.at(center + away), found)
                assert np.linalg.norm(points + away * velocity - truth, axis=1).max() < 0.011, n
    assert len(list(moments(ACTORS["straight"], sample(ACTORS["straight"].at(0), 0.1), 0.01))) == 1


def test_pieces_cover_the_time_in_which_something_is_there() -> None:
    """Opacities of neighbours in time together stay high, and fall where it has gone."""
    found = sample(ACTORS["coming and going"].at(1.0), 0.1)
    for actor, low, high in ((ACTORS["coming and going"], 0.5, 1.4), (ACTORS["circle"], 0.0, 2.0)):
        pieces = np.array(list(moments(actor, sample(actor.at(low), 0.1), 0.01)))
        for time in np.linspace(low, high, 200):
            weights = np.exp(-0.5 * ((time - pieces[:, 0]) / pieces[:, 1]) ** 2)
            hidden = np.prod(1 - splat_fit.OPACITY * weights)
            assert hidden < 0.25
    pieces = np.array(list(moments(ACTORS["coming and going"], found, 0.01)))
    for time in (0.3, 1.6):
        assert np.exp(-0.5 * ((time - pieces[:, 0]) / pieces[:, 1]) ** 2).max() < 0.05


def test_splats_lie_flat_on_the_surfaces() -> None:
    eyes = splat_truth_scene.cameras(64, 48)["train"]
    model = surface_model(COARSE, eyes)
    assert model.degree == 2 and model.motion is not None
    assert (model.motion.start, model.motion.end, model.motion.fps) == (0, 2, 30)
    floor = np.isclose(model.means[:, 1], 0, atol=1e-6) & (model.motion.t_sigmas > 10)
    assert floor.sum() > 500
    spread = covariances(model.scales[floor], model.rotations[floor])  # xx xy xz yy yz zz
    assert (spread[:, 3] < 0.1 * spread[:, 0]).all() and (spread[:, 3] < 0.1 * spread[:, 5]).all()
    assert (model.motion.velocities[floor] == 0).all()


def test_harmonics_hold_what_cameras_see() -> None:
    eyes = np.stack([c.eye for c in splat_truth_scene.cameras(64, 48)["train"]])
    for name, most in (("floor", 1e-6), ("circle", 0.02)):  # matte; shiny
        shape = ACTORS[name].at(0.3)
        points, _ = place(shape, sample(shape, 0.1))
        normals = normals_of(shape, points)
        sh = harmonics_seen(shape, points, normals, eyes, 2)
        worst = 0.0
        for eye in eyes:
            to = points - eye
            to /= np.linalg.norm(to, axis=1, keepdims=True)
            front = np.einsum("ni,ni->n", to, normals) < 0
            found = 0.5 + np.einsum("nk,nkc->nc", basis(to, 2), sh)
            wanted = shade(
                points, normals, albedo_of(shape, points), shape.paint, splat_truth_scene.LIGHT, eye
            )
            worst = max(worst, float(np.abs(found - wanted)[front].mean()))
        assert worst <= most


# ---------------------------------------------------------------- metrics


def test_psnr() -> None:
    black = np.zeros((4, 5, 3))
    assert psnr(black, black) == BEST
    assert psnr(black, black + 0.1) == pytest.approx(20)
    assert psnr(black.astype(np.float32), black + 1) == pytest.approx(0)


def test_ssim() -> None:
    draw = np.random.default_rng(0)
    one = draw.random((24, 30, 3))
    other = np.clip(one + 0.1 * draw.normal(size=one.shape), 0, 1)
    assert ssim(one, one) == pytest.approx(1)
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(weights, weights) / weights.sum() ** 2
    values = []
    for y in range(5, 24 - 5):  # a window at a time, as the definition has it
        for x in range(5, 30 - 5):
            for c in range(3):
                a, b = (p[y - 5 : y + 6, x - 5 : x + 6, c] for p in (one, other))
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
                cov = (window * a * b).sum() - ma * mb
                over = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
                values.append(over / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert ssim(one, other) == pytest.approx(np.mean(values))


def test_scores_of_a_row() -> None:
    truth = np.full((20, 20, 3), 0.5)
    there, moving = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    there[:10], moving[:2] = True, True
    off = truth.copy()
    off[:10] += 0.1
    steady = [Shown(off, truth, there, moving, n > 0) for n in range(3)]
    found = score(steady)
    assert found.psnr == pytest.approx(20 + 10 * math.log10(2)) == found.worst
    assert found.there == pytest.approx(20) == found.moving
    assert found.temporal == BEST  # wrong, but it does not flicker
    flicker = [Shown(off if n % 2 else truth, truth, there, moving, n > 0) for n in range(3)]
    assert score(flicker).temporal == pytest.approx(20 + 10 * math.log10(2))
    apart = [Shown(off, truth, there, moving & False, False)]
    assert math.isnan(score(apart).temporal) and math.isnan(score(apart).moving)
