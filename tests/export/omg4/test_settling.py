"""What stands still: it is found, loses nothing that can be seen, and training leaves it alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.export.omg4.psplat_writer import psplat_size
from penstock.export.omg4.quantization import encode_model
from penstock.export.omg4.rasteriser import NativeRasteriser
from penstock.export.omg4.refinement import refine_against
from penstock.export.omg4.report import mean_psnr
from penstock.export.omg4.settings import BookSizes, CompressionSettings
from penstock.export.omg4.settling import LASTING, settle, settled
from penstock.export.omg4.views import Truth
from penstock.loaders.splats.model import SplatModel, SplatMotion
from tests.export.omg4.scenes import cloud, views

LASTS, MOVES, FADES = slice(0, 20), slice(20, 40), slice(40, 60)


def mixed() -> SplatModel:
    """Over two seconds 20 splats nearly stand still, 20 last and move, 20 come and go."""
    model = cloud(60, seed=1, size=0.15)
    rng = np.random.default_rng(2)
    velocities = rng.normal(size=(60, 3)) * 0.3
    velocities[LASTS] *= 0.01
    t_sigmas = np.where(np.arange(60) < 40, 60 + 40 * rng.random(60), 0.3)
    t_centers = 1 + 0.2 * rng.normal(size=60)
    motion = SplatMotion(
        velocities.astype(np.float32), t_centers.astype(np.float32), t_sigmas.astype(np.float32),
        0.0, 2.0, 12.0,
    )  # fmt: skip
    return replace(model, motion=motion)


def test_what_lasts_is_in_the_middle_and_what_stands_is_still() -> None:
    model = mixed()
    found = settle(model)
    assert model.motion is not None and found.motion is not None
    assert (found.motion.t_centers[:40] == 1).all()
    assert found.motion.t_sigmas[:40] == pytest.approx(LASTING)
    assert (found.motion.velocities[LASTS] == 0).all()
    for name in ("velocities", "t_centers", "t_sigmas"):
        assert (getattr(found.motion, name)[FADES] == getattr(model.motion, name)[FADES]).all()
    assert (found.motion.velocities[MOVES] == model.motion.velocities[MOVES]).all()
    state = settled(found)
    assert state.lasting.tolist() == [True] * 40 + [False] * 20
    assert state.still.tolist() == [True] * 20 + [False] * 40
    assert not settled(model).lasting.any()
    again = settle(found)
    assert (again.means == found.means).all()


def test_hardly_anything_changes_in_the_picture() -> None:
    model = mixed()
    rasteriser = NativeRasteriser(1)
    truth = Truth(views(8), model, rasteriser)
    decibels = mean_psnr(rasteriser, settle(model), truth)
    assert decibels is not None and decibels > 40
    moved = mixed()
    assert moved.motion is not None
    moved.motion.velocities[:] = 0  # what a wrong rule would do
    wrong = mean_psnr(rasteriser, moved, truth)
    assert wrong is not None and wrong < decibels - 10


def test_training_leaves_their_times() -> None:
    model = mixed()
    rasteriser = NativeRasteriser(1)
    truth = Truth(views(8), model, rasteriser)
    start = settle(replace(model, sh=model.sh * np.float32(0.7)))
    settings = CompressionSettings(refine_steps=15, threads=1)
    found = refine_against(start, truth, rasteriser, settings)
    assert found is not start and start.motion is not None and found.motion is not None
    assert (found.motion.velocities[LASTS] == 0).all()
    assert (found.motion.t_centers[:40] == 1).all()
    assert (found.motion.t_sigmas[:40] == start.motion.t_sigmas[:40]).all()
    assert (found.motion.velocities[20:] != start.motion.velocities[20:]).any(axis=1).all()
    assert (found.motion.t_sigmas[FADES] != start.motion.t_sigmas[FADES]).all()
    assert (found.means != start.means).any(axis=1).mean() > 0.9


def test_their_times_cost_next_to_nothing() -> None:
    model = mixed()
    rows = np.arange(4000) % 40
    rng = np.random.default_rng(3)
    many = cloud(4000, seed=4)
    assert model.motion is not None
    motion = SplatMotion(
        model.motion.velocities[rows] * rng.random((4000, 1)).astype(np.float32) * 0.01,
        (1 + 0.1 * rng.normal(size=4000)).astype(np.float32),
        (80 + 20 * rng.random(4000)).astype(np.float32),
        0.0, 2.0, 12.0,
    )  # fmt: skip
    many = replace(many, motion=motion)

    def times(model: SplatModel) -> float:
        parts = psplat_size(encode_model(model, BookSizes())).parts
        return sum(v for k, v in parts.items() if k.split(".")[0] in ("displacement", "t_center"))

    assert times(settle(many)) < 0.05 * times(many)


def test_only_some_arrays_are_trained() -> None:
    model = mixed()
    rasteriser = NativeRasteriser(1)
    truth = Truth(views(8), model, rasteriser)
    start = replace(model, sh=model.sh * np.float32(0.7))
    settings = CompressionSettings(refine_steps=0, threads=1)
    found = refine_against(
        start, truth, rasteriser, settings, steps=10, only=("dc", "rest", "opacity")
    )
    assert (found.sh != start.sh).any() and (found.opacities != start.opacities).any()
    assert (found.means == start.means).all()
    assert found.scales == pytest.approx(start.scales, rel=1e-5)  # through logarithms


def test_training_moves_them_where_settling_is_off() -> None:
    model = mixed()
    rasteriser = NativeRasteriser(1)
    truth = Truth(views(8), model, rasteriser)
    start = settle(replace(model, sh=model.sh * np.float32(0.7)))
    settings = CompressionSettings(refine_steps=15, threads=1, settling=False)
    found = refine_against(start, truth, rasteriser, settings)
    assert start.motion is not None and found.motion is not None
    assert (found.motion.velocities[LASTS] != 0).any(axis=1).all()
    assert (found.motion.t_centers[:40] != 1).all()


@pytest.mark.parametrize("moving", [False, True])
def test_harmonics_of_degree_0_and_models_that_do_not_move(moving: bool) -> None:
    model = cloud(40, seed=6, coefficients=1, moving=moving)
    rasteriser = NativeRasteriser(1)
    truth = Truth(views(6, moving=moving), model, rasteriser)
    start = settle(replace(model, sh=model.sh * np.float32(0.6)))
    settings = CompressionSettings(refine_steps=15, threads=1)
    for only in (None, ("dc", "rest", "opacity")):
        found = refine_against(start, truth, rasteriser, settings, only=only)
        assert found.sh.shape == (40, 1, 3) and (found.sh != start.sh).any()
        assert (found.means == start.means).all() == (only is not None)


def test_nothing_to_settle() -> None:
    still = cloud(5, moving=False)
    assert settle(still) is still
    moment = cloud(5)
    assert moment.motion is not None
    moment = replace(moment, motion=replace(moment.motion, start=1.0, end=1.0))
    assert settle(moment) is moment
    assert settle(cloud(0)).count == 0
