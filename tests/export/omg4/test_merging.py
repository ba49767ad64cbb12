"""Merging: weights of groups, their gradients, and what is left of the pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.export.omg4.drawing import ModelGradients, draw_model
from penstock.export.omg4.groups import Groups
from penstock.export.omg4.losses import psnr
from penstock.export.omg4.merging import Merging, merge
from penstock.export.omg4.rasteriser import NativeRasteriser
from penstock.export.omg4.settings import CompressionSettings
from penstock.export.omg4.views import Truth
from penstock.loaders.splats.model import SplatModel, SplatMotion, check_model
from tests.export.omg4.scenes import cloud, views

GROUPS = Groups(np.array([1, 4, 6, 0, 7]), np.array([0, 3, 5]))


def test_weights_start_equal_or_by_mass() -> None:
    model = cloud(9)
    plain = Merging(model, GROUPS, "representative")
    assert plain.weights() == pytest.approx(
        np.array([1 / 3] * 3 + [1 / 2] * 2)[:, None].repeat(3, 1)
    )
    merged = plain.model()
    check_model(merged, "merged")
    assert merged.count == 4 + 2
    assert merged.means[4] == pytest.approx(model.means[[1, 4, 6]].mean(axis=0), abs=1e-6)
    assert merged.sh[5] == pytest.approx(model.sh[[0, 7]].mean(axis=0), abs=1e-6)
    assert (merged.scales[4:] == model.scales[[1, 0]]).all()  # the representatives'
    assert (merged.opacities[4:] == model.opacities[[1, 0]]).all()
    assert (merged.means[:4] == model.means[[2, 3, 5, 8]]).all()

    mass = Merging(model, GROUPS, "moments")
    check_model(mass.model(), "merged")
    shares = mass.weights()
    assert shares[:3].sum(axis=0) == pytest.approx([1] * 3)
    assert mass.model().means[4:] == pytest.approx(mass.base.means, abs=2e-3)


@pytest.mark.parametrize("shape", ["representative", "moments"])
def test_gradients_by_logits_are_those_of_differences(shape: str) -> None:
    model = cloud(9)
    merging = Merging(model, GROUPS, shape)
    rng = np.random.default_rng(0)
    merging.logits += rng.normal(size=merging.logits.shape).astype(np.float32)
    by_mean = rng.normal(size=(6, 3)).astype(np.float32)
    by_sh = rng.normal(size=(6, 4, 3)).astype(np.float32)
    active = np.array([1, 3, 4, 5])
    zeros = np.zeros(4, np.float32)
    found = ModelGradients(
        active, by_sh[active], zeros, by_mean[active], np.zeros((6, 4), np.float32), None, None,
        None, zeros, zeros,
    )  # fmt: skip

    def value() -> float:
        merged = merging.model()
        return float(
            (merged.means[4:].astype(np.float64) * by_mean[4:]).sum()
            + (merged.sh[4:].astype(np.float64) * by_sh[4:]).sum()
        )

    gradient = merging.by_logits(merging.model(), found)
    for row in range(5):
        for column in range(3):
            before = merging.logits[row, column]
            merging.logits[row, column] = before + np.float32(0.01)
            up = value()
            merging.logits[row, column] = before - np.float32(0.01)
            down = value()
            merging.logits[row, column] = before
            assert gradient[row, column] == pytest.approx((up - down) / 0.02, abs=2e-3, rel=2e-3)


def doubled(model: SplatModel) -> SplatModel:
    """Each splat twice in the same place, together as opaque as it was."""
    motion = model.motion
    assert motion is not None
    twice = np.repeat(np.arange(model.count), 2)
    return SplatModel(
        model.means[twice],
        model.scales[twice],
        model.rotations[twice],
        (1 - np.sqrt(1 - model.opacities[twice])).astype(np.float32),
        model.sh[twice],
        SplatMotion(
            motion.velocities[twice], motion.t_centers[twice], motion.t_sigmas[twice], 0.0, 2.0
        ),
    )


@pytest.mark.parametrize("steps", [0, 5])
def test_twins_become_one_and_the_picture_stays(steps: int) -> None:
    faint = cloud(80, seed=7)  # two opaque ones are wider together than one of their shape
    model = doubled(replace(faint, opacities=faint.opacities * np.float32(0.3)))
    rasteriser = NativeRasteriser(1)
    truth = Truth(views(4), model, rasteriser)
    settings = CompressionSettings(merge_steps=steps, merge_quantile=0.0, threads=1)
    merged = merge(model, truth, rasteriser, settings)
    check_model(merged, "merged")
    assert merged.count == 80
    for view in views(4):
        wanted = draw_model(rasteriser, model, view.camera, view.time)
        image = draw_model(rasteriser, merged, view.camera, view.time)
        assert psnr(image, wanted) > 35


def test_nothing_alike_nothing_merged() -> None:
    model = cloud(20, seed=8)
    rasteriser = NativeRasteriser(1)
    truth = Truth(views(2), model, rasteriser)
    assert merge(model, truth, rasteriser, CompressionSettings(threads=1)) is model
