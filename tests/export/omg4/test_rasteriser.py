"""Both rasterisers draw the same pictures and have the same gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.errors import BackendMissingError, UsageError
from penstock.export.omg4 import torch_rasteriser
from penstock.export.omg4.drawing import Drawing, active_at, draw_model
from penstock.export.omg4.rasteriser import NativeRasteriser, Rasteriser, rasteriser_for
from penstock.export.omg4.refinement import refine_against
from penstock.export.omg4.report import mean_psnr
from penstock.export.omg4.settings import CompressionSettings
from penstock.export.omg4.torch_rasteriser import TorchRasteriser
from penstock.export.omg4.views import Truth
from penstock.loaders.splats.harmonics import C0
from penstock.loaders.splats.model import SplatModel
from penstock.runtime.splats.camera import look_at
from penstock.runtime.splats.renderer import SplatRenderer
from tests.export.omg4.scenes import cameras, cloud, views

NAMES = (
    "sh", "opacities", "means", "covariances", "velocities", "t_centers", "t_sigmas", "weights",
    "screen",
)  # fmt: skip


@pytest.fixture(scope="module")
def native() -> NativeRasteriser:
    return NativeRasteriser(2)


def device() -> str:
    """That torch's rasteriser is tested on: a GPU where there is one."""
    pytest.importorskip("torch")
    return "cuda" if torch_rasteriser.has_gpu() else "cpu"


@pytest.fixture(scope="module")
def torch() -> TorchRasteriser:
    return TorchRasteriser(device(), "float64")


@pytest.mark.parametrize(
    "moving, size, footprint",
    [(False, 0.02, "exact"), (False, 0.12, "exact"), (False, 0.6, "exact"), (True, 0.02, "exact"),
     (True, 0.12, "exact"), (True, 0.6, "exact"), (True, 0.12, "omg4-sentinel")],
)  # fmt: skip
def test_pictures_and_gradients_agree(moving: bool, size: float, footprint: str) -> None:
    native = NativeRasteriser(2, footprint)
    torch = TorchRasteriser(device(), "float64", footprint)
    model = cloud(150, seed=2, moving=moving, size=size)
    camera = replace(cameras(5)[1], width=45, height=37)  # no multiple of a tile
    towards = np.random.default_rng(0).normal(size=(37, 45, 3)).astype(np.float32)
    found = []
    for rasteriser in (native, torch):
        drawing = Drawing(rasteriser, model, camera, 0.9 if moving else None)
        found.append((drawing.image, drawing.gradients(towards)))
    (image, ours), (wanted, theirs) = found
    # A splat at the very edge of being drawn may be in one picture and not in the other.
    assert np.quantile(np.abs(image - wanted), 0.995) < 2e-4
    assert np.abs(image - wanted).max() < 0.02
    assert image.max() > 0.3
    for name in NAMES:
        a, b = getattr(ours, name), getattr(theirs, name)
        if a is None:
            assert b is None and not moving
            continue
        scale = np.abs(b).max()
        assert np.isfinite(a).all() and scale > 0, name
        off = np.abs(a - b).reshape(len(a), -1).max(axis=1) / scale
        assert np.quantile(off, 0.97) < 3e-3 and off.max() < 0.15, name


@pytest.mark.parametrize("which", ["native", "torch"])
def test_weights_are_what_each_splat_has_of_the_picture(
    which: str, request: pytest.FixtureRequest
) -> None:
    """Of white splats every pixel is the sum of their shares; of one white one, its own."""
    rasteriser: Rasteriser = request.getfixturevalue(which)
    model = cloud(50, seed=3, coefficients=1, size=0.3)  # many reach over the picture's edge
    camera = replace(cameras(5)[2], width=45, height=37)
    white = np.float32(0.5 / C0)
    drawing = Drawing(rasteriser, replace(model, sh=np.full_like(model.sh, white)), camera, 1.1)
    found = drawing.gradients(np.ones_like(drawing.image))
    total = drawing.image[:, :, 0].sum(dtype=np.float64)
    assert total > 100 and found.weights.sum() == pytest.approx(total, rel=1e-5)
    one = int(np.argsort(found.weights)[-3])
    sh = np.full_like(model.sh, -white)
    sh[found.active[one]] = white
    image = draw_model(rasteriser, replace(model, sh=sh), camera, 1.1)
    assert found.weights[one] == pytest.approx(image[:, :, 0].sum(dtype=np.float64), rel=1e-5)


def test_gradients_of_the_native_one_are_those_of_differences(native: NativeRasteriser) -> None:
    model = cloud(60, seed=4, size=0.3)
    camera = cameras(3, side=40)[0]
    towards = np.random.default_rng(1).normal(size=(40, 40, 3)).astype(np.float32)
    found = Drawing(native, model, camera, 1.0).gradients(towards)
    way = np.random.default_rng(2).normal(size=model.sh.shape).astype(np.float32)

    def value(step: float) -> float:
        moved = replace(model, sh=model.sh + np.float32(step) * way)
        image = draw_model(native, moved, camera, 1.0)
        return float((image.astype(np.float64) * towards).sum())

    expected = (value(2e-3) - value(-2e-3)) / 4e-3
    assert float((found.sh * way[found.active]).sum()) == pytest.approx(expected, rel=0.01)


def test_threads_do_not_change_anything() -> None:
    model = cloud(300, seed=5)
    camera = cameras(2)[0]
    towards = np.ones((48, 48, 3), np.float32)
    found = []
    for threads in (1, 3):
        drawing = Drawing(NativeRasteriser(threads), model, camera, 1.0)
        found.append((drawing.image, drawing.gradients(towards)))
    assert (found[0][0] == found[1][0]).all()
    for name in NAMES:
        assert (getattr(found[0][1], name) == getattr(found[1][1], name)).all()


def test_only_active_splats_are_looked_at(native: NativeRasteriser) -> None:
    model = cloud(200, seed=6)
    assert model.motion is not None
    active = active_at(model, 0.1)
    weight = np.exp(-0.5 * ((0.1 - model.motion.t_centers) / model.motion.t_sigmas) ** 2)
    assert set(np.flatnonzero(weight > 0.05)) <= set(active.tolist())
    assert len(active) < 200 and (weight[active] > 0.0495).all()
    assert active_at(replace(model, motion=None), None).tolist() == list(range(200))


def test_colours_are_clipped_at_black(native: NativeRasteriser) -> None:
    sh = np.zeros((2, 1, 3), np.float32)
    sh[0] = (0, 1, -9)
    model = replace(cloud(2, coefficients=1), sh=sh)
    found = native.loops.colours(model, cameras(1)[0], np.arange(2))
    assert found[:, 0] == pytest.approx([0.5, 0.5 + C0, 0], abs=1e-6)
    assert found[:, 1] == pytest.approx([0.5] * 3)


def test_a_colour_depends_on_where_it_is_seen_from(native: NativeRasteriser) -> None:
    """Degree 1's second function is C1 z: brighter from behind than from the front."""
    sh = np.zeros((1, 4, 3), np.float32)
    sh[0, 2] = 0.5
    model = replace(cloud(1), sh=sh, means=np.array([[0, 0, 5]], np.float32))
    for z, sign in ((0.0, 1), (10.0, -1)):
        camera = look_at((0, 0, z), (0, 0, 5), width=8, height=8)
        found = native.loops.colours(model, camera, np.arange(1))
        assert found[:, 0] == pytest.approx([0.5 + sign * 0.5 * 0.4886025] * 3)


def empty() -> SplatModel:
    return cloud(0)


@pytest.mark.parametrize("which", ["native", "torch"])
def test_nothing_and_nothing_in_sight(which: str, request: pytest.FixtureRequest) -> None:
    rasteriser: Rasteriser = request.getfixturevalue(which)
    camera = cameras(1)[0]
    away = cloud(5)
    for model in (empty(), replace(away, means=away.means - np.float32(100))):
        drawing = Drawing(rasteriser, model, camera, 1.0)
        assert (drawing.image == 0).all()
        found = drawing.gradients(np.ones_like(drawing.image))
        assert (found.sh == 0).all() and (found.weights == 0).all()


@pytest.mark.parametrize("which", ["native", "torch"])
def test_gradients_need_a_picture_of_their_size(which: str, request: pytest.FixtureRequest) -> None:
    fresh: Rasteriser
    if which == "native":
        fresh = NativeRasteriser(1)
    else:
        fresh = TorchRasteriser(device())
    with pytest.raises(UsageError, match="call draw first"):
        fresh.backward(np.zeros((4, 4, 3), np.float32))
    drawing = Drawing(fresh, cloud(3), cameras(1)[0], 1.0)
    with pytest.raises(UsageError, match=r"\(4, 4, 3\).*\(48, 48, 3\)"):
        drawing.gradients(np.zeros((4, 4, 3), np.float32))


def test_the_footprint_is_the_settings() -> None:
    model, camera = cloud(100, seed=8), cameras(2)[0]
    settings = CompressionSettings(threads=1)
    wide = settings.with_changes(footprint="omg4-sentinel")
    image = draw_model(rasteriser_for(wide), model, camera, 1.0)
    renderer = SplatRenderer(model, threads=1, footprint="omg4-sentinel")
    assert np.abs(image - renderer.render(camera, 1.0).image).max() < 1e-3
    assert np.abs(image - draw_model(rasteriser_for(settings), model, camera, 1.0)).max() > 0.05
    with pytest.raises(UsageError, match="footprint is 'wide'"):
        settings.with_changes(footprint="wide")


def decibels(rasteriser: Rasteriser, model: SplatModel, truth: Truth) -> float:
    found = mean_psnr(rasteriser, model, truth)
    assert found is not None
    return found


def test_training_on_the_device_that_is_there() -> None:
    """In floats, as `device="auto"` does it; the native one ends where it ends."""
    model = cloud(60, seed=9, size=0.15)
    where = TorchRasteriser(device())
    truth = Truth(views(4), model, where)
    bad = replace(model, sh=model.sh * np.float32(0.5))
    settings = CompressionSettings(threads=1, refine_steps=20, rates=8.0)
    after = []
    for rasteriser in (where, NativeRasteriser(1)):
        good = refine_against(bad, truth, rasteriser, settings)
        after.append(decibels(rasteriser, good, truth))
    assert after[0] > decibels(where, bad, truth) + 3
    assert after[0] == pytest.approx(after[1], abs=0.5)


def test_the_device_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CompressionSettings(threads=1)
    assert isinstance(rasteriser_for(settings), NativeRasteriser)
    monkeypatch.setattr(torch_rasteriser, "has_gpu", lambda: False)
    assert isinstance(rasteriser_for(settings.with_changes(device="auto")), NativeRasteriser)
    with pytest.raises(BackendMissingError, match="'cuda' needs torch and a GPU"):
        rasteriser_for(settings.with_changes(device="cuda"))
