"""Scores: what shows more scores more, in photos and in the model's own pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.export.omg4 import scores
from penstock.export.omg4.drawing import draw_model
from penstock.export.omg4.rasteriser import NativeRasteriser
from penstock.export.omg4.scores import random_signs, score
from penstock.export.omg4.settings import CompressionSettings
from penstock.export.omg4.views import Truth
from penstock.export.report import Progress
from penstock.loaders.splats.model import SplatModel
from tests.export.omg4.scenes import cloud, views

SETTINGS = CompressionSettings(threads=1)


def own(model: SplatModel, count: int = 6) -> Truth:
    return Truth(views(count, moving=model.dynamic), model, NativeRasteriser(1))


def test_weights_are_shares_of_the_pixels() -> None:
    model = cloud(120, seed=1)
    told: list[Progress] = []
    found = score(model, own(model), NativeRasteriser(1), SETTINGS, told.append)
    assert [one.done for one in told] == [1, 2, 3, 4, 5, 6] and told[-1].total == 6
    assert (found.weight >= 0).all() and found.weight.sum() < 6 * 48 * 48
    # With a white colour for every splat the sum of weights is the sum of a channel.
    white = np.zeros_like(model.sh)
    white[:, 0] = 0.5 / 0.28209479177387814
    pale = replace(model, sh=white)
    channel = sum(
        float(draw_model(NativeRasteriser(1), pale, view.camera, view.time)[:, :, 0].sum())
        for view in views(6)
    )
    assert found.weight.sum() == pytest.approx(channel, rel=1e-3)


def test_of_many_views_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cloud(60, seed=2)
    monkeypatch.setattr(scores, "MOST_VIEWS", 4)
    told: list[Progress] = []
    found = [
        score(model, own(model, 12), NativeRasteriser(1), settings, told.append)
        for settings in (SETTINGS, SETTINGS, SETTINGS.with_changes(seed=1))
    ]
    assert [one.done for one in told] == [1, 2, 3, 4] * 3 and told[-1].total == 4
    assert (found[0].weight == found[1].weight).all()
    assert (found[0].weight != found[2].weight).any()


def test_no_moment_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cameras, camera by camera, at 20 moments; a splat is there at one of them only."""
    ring, moments = views(3), [0.1 * k for k in range(20)]
    monkeypatch.setattr(scores, "MOST_VIEWS", 20)
    model = cloud(20, seed=3, size=0.4)
    assert model.motion is not None
    centers = np.array(moments, np.float32)
    brief = replace(
        model.motion, t_centers=centers, t_sigmas=np.full(20, 0.02, np.float32),
        velocities=np.zeros((20, 3), np.float32),
    )  # fmt: skip
    model = replace(model, means=model.means * np.float32(0.3), motion=brief)
    truth = Truth(
        [replace(view, time=time) for view in ring for time in moments], model, NativeRasteriser(1)
    )
    for seed in range(3):
        found = score(model, truth, NativeRasteriser(1), SETTINGS.with_changes(seed=seed))
        assert (found.weight > 0).all()


def test_what_nobody_sees_scores_nothing() -> None:
    model = cloud(60, seed=2)
    means = model.means.copy()
    means[:10] = 1000
    found = score(replace(model, means=means), own(model), NativeRasteriser(1), SETTINGS)
    assert (found.space[:10] == 0).all() and (found.weight[:10] == 0).all()
    assert (found.space[10:] > 0).mean() > 0.5


def test_a_brighter_splat_matters_more() -> None:
    model = cloud(2, coefficients=1, moving=False)
    twins = replace(
        model,
        means=np.array([[-0.8, 0, 0], [0.8, 0, 0]], np.float32),
        scales=np.full((2, 3), 0.1, np.float32),
        opacities=np.full(2, 0.8, np.float32),
        sh=np.array([[[3, 3, 3]], [[-1.6, -1.6, -1.6]]], np.float32),
    )
    found = score(twins, own(twins), NativeRasteriser(1), SETTINGS)
    assert found.time is None
    assert found.space[0] > 5 * found.space[1] > 0


def test_photos_are_compared_with() -> None:
    """A splat whose colour differs from the photo's has a gradient, and no other."""
    model = cloud(3, coefficients=1)
    assert model.motion is not None
    apart = replace(
        model,
        means=np.array([[-1, 0, 0], [0, 0.8, 0], [1, 0, 0]], np.float32),
        scales=np.full((3, 3), 0.1, np.float32),
        motion=replace(
            model.motion,
            velocities=np.zeros((3, 3), np.float32),
            t_centers=np.ones(3, np.float32),
            t_sigmas=np.full(3, 0.5, np.float32),
        ),
    )
    rasteriser = NativeRasteriser(1)
    shots = [
        replace(view, time=0.7, image=draw_model(rasteriser, apart, view.camera, 0.7))
        for view in views(4)[:1]
    ]
    sh = apart.sh.copy()
    sh[1] += 0.5
    wrong = replace(apart, sh=sh)
    for kind in ("signed", "absolute"):
        settings = SETTINGS.with_changes(score=kind)
        found = score(wrong, Truth(shots, apart, rasteriser), rasteriser, settings)
        assert found.time is not None
        assert found.time[1] != 0 and found.time[0] == found.time[2] == 0
        if kind == "absolute":
            assert found.time[1] > 0
        else:
            # Later is brighter at 0.7 s the nearer t_center comes, and it is too bright already.
            assert found.time[1] < 0


def test_signs_are_of_a_seed() -> None:
    signs = random_signs((4, 5, 3), (1, 2))
    assert (np.abs(signs) == np.float32(1 / 60)).all() and 0 < (signs > 0).mean() < 1
    assert (signs == random_signs((4, 5, 3), (1, 2))).all()
    assert (signs != random_signs((4, 5, 3), (1, 3))).any()
