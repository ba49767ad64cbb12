"""Scalars: errors are within half a step, and what is on few levels already is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.export.omg4.psplat_writer import psplat_size
from penstock.export.omg4.static_quantization import (
    Precision,
    exact_splats,
    quantize_splats,
    without_free_turns,
)
from penstock.loaders.splats.covariance import covariances
from penstock.loaders.splats.decoding import decode_splats
from penstock.loaders.splats.model import SplatModel, check_model, select
from tests.loaders.splats.splat_builder import models, random_model


@settings(deadline=None)
@given(model=models)
def test_errors_are_within_half_a_step(model: SplatModel) -> None:
    steps = Precision()
    encoded = quantize_splats(model, steps)
    read = check_model(decode_splats(encoded), "read")
    assert (read.count, read.degree, read.dynamic) == (model.count, model.degree, model.dynamic)
    if model.count == 0:
        return
    middle = np.sort(model.scales, axis=1)[:, 1:2]
    allowed = 0.5 * middle / steps.position_parts + 1e-5
    assert (np.abs(read.opacities - model.opacities) <= steps.opacity / 2 + 1e-6).all()
    assert np.abs(read.sh[:, 0] - model.sh[:, 0]).max() <= steps.colour * np.sqrt(3) / 2 + 1e-6
    if model.degree:
        assert np.abs(read.sh[:, 1:] - model.sh[:, 1:]).max() <= steps.rest / 2 + 1e-6
    ratio: np.ndarray = np.sort(read.scales, axis=1) / np.sort(model.scales, axis=1)
    assert np.abs(np.log(ratio)).max() <= steps.scale / 2 + 1e-4
    own, theirs = (
        covariances(model.scales, model.rotations),
        covariances(read.scales, read.rotations),
    )
    size = (model.scales.max(axis=1) ** 2)[:, None]
    assert (np.abs(own - theirs) <= size * (2 * steps.scale + 8 * steps.rotation)).all()
    if model.motion is None or read.motion is None:
        assert (np.abs(read.means - model.means) <= allowed).all()
        return
    # Where the splat is at its own middle, as far as its times were kept.
    late = (read.motion.t_centers - model.motion.t_centers)[:, None]
    there = model.means + model.motion.velocities * late
    assert (np.abs(read.means - there) <= allowed + 1e-4 * np.abs(there)).all()
    ratio = read.motion.t_sigmas / model.motion.t_sigmas
    assert np.abs(np.log(ratio)).max() <= steps.t_sigma / 2 + 1e-4


@given(seed=st.integers(0, 2**32 - 1))
def test_turns_of_discs_and_needles_about_themselves_are_free(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotations = rng.normal(size=(30, 4))
    rotations[:, 0] = np.abs(rotations).max(axis=1)
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    disc, needle, ball = [0.5, 0.5, 0.01], [0.5, 0.01, 0.01], [0.2] * 3
    for scales, zeros in ((disc, [3]), (needle, [1]), (ball, [1, 2, 3])):
        own = np.tile(scales, (30, 1))
        found = without_free_turns(own, rotations, 1e-9)
        assert np.abs(found[:, zeros]).max() < 1e-9
        before, after = covariances(own, rotations), covariances(own, found)
        assert np.allclose(before, after, atol=1e-7)
    own = np.exp(rng.uniform(-3, 0, (30, 3)))
    found = without_free_turns(own, rotations, 0.03)
    error = np.abs(covariances(own, rotations) - covariances(own, found)).max(axis=1)
    assert (error <= 3 * 0.03 * own.max(axis=1) ** 2 + 1e-6).all()
    assert np.allclose(without_free_turns(own, rotations, 0.0), rotations)


def spz_like(count: int, seed: int = 0) -> SplatModel:
    """With the levels that SPZ has."""
    rng = np.random.default_rng(seed)
    means = np.cumsum(rng.integers(-40, 41, (count, 3)), axis=0) / 4096
    scales = np.exp(rng.integers(40, 100, (count, 3)) / 16 - 10)
    three = rng.integers(-300, 301, (count, 3)) / 511 / np.sqrt(2)
    quaternions = np.concatenate([np.sqrt(1 - (three**2).sum(1, keepdims=True)), three], axis=1)
    colours = (rng.integers(0, 256, (count, 1, 3)) / 255 - 0.5) / 0.15
    return SplatModel(
        means.astype("f4"),
        scales.astype("f4"),
        quaternions.astype("f4"),
        (rng.integers(1, 256, count) / 255).astype("f4"),
        colours.astype("f4"),
    )


def sog_like(count: int, seed: int = 0) -> SplatModel:
    """With the levels that SOG has, a palette of harmonics among them."""
    rng = np.random.default_rng(seed)
    base = spz_like(count, seed)
    places = rng.integers(0, 65536, (count, 3))
    places[:2] = [[0] * 3, [65535] * 3]
    logs = -1.2 + places / 65535 * 2.9
    table = np.sort(rng.normal(0, 0.1, 256)).astype("f4")
    palette = table[rng.integers(0, 256, (count // 4, 15, 3))]
    sh = np.concatenate([base.sh, palette[rng.integers(0, len(palette), count)]], axis=1)
    means = np.sign(logs) * np.expm1(np.abs(logs))
    book = np.sort(rng.uniform(-9, -2, 256))
    scales = np.exp(book[rng.integers(0, 256, (count, 3))])
    return SplatModel(means.astype("f4"), scales.astype("f4"), base.rotations, base.opacities, sh)


@pytest.mark.parametrize("make", [spz_like, sog_like])
def test_levels_of_other_formats_are_kept(make: object) -> None:
    model: SplatModel = make(2000)  # type: ignore[operator]
    encoded = exact_splats(model)
    assert encoded is not None
    read = check_model(decode_splats(encoded), "read")
    assert np.allclose(read.means, model.means, rtol=3e-7, atol=1e-7)
    assert np.allclose(read.scales, model.scales, rtol=3e-6)
    turned = np.abs((read.rotations * model.rotations).sum(axis=1))
    assert turned.min() > 1 - 1e-6
    assert np.allclose(read.opacities, model.opacities, atol=1e-7)
    assert np.allclose(read.sh, model.sh, atol=1e-6)


def test_a_level_of_detail_has_the_steps_of_the_whole_scene() -> None:
    """Its bounds are of splats that it may not have: no lowest and no highest coordinate."""
    model = sog_like(2000)
    inside = (model.means > model.means.min(axis=0)) & (model.means < model.means.max(axis=0))
    part = select(model, np.flatnonzero(inside.all(axis=1))[:300])
    encoded = exact_splats(part)
    assert encoded is not None
    assert np.allclose(decode_splats(encoded).means, part.means, rtol=3e-7, atol=1e-7)


def test_exact_numbers_cost_less_than_the_formats_they_are_from() -> None:
    """SPZ's 20 bytes a splat have this entropy at least in random numbers."""
    encoded = exact_splats(spz_like(3000))
    assert encoded is not None
    assert psplat_size(encoded).bytes_a_splat < 14.5


def test_other_models_are_not_exact() -> None:
    assert exact_splats(random_model(50)) is None
    assert exact_splats(random_model(50, dynamic=True)) is None
    assert exact_splats(random_model(0)) is None
    few = spz_like(100)
    assert exact_splats(select(few, np.arange(1))) is not None


@given(factor=st.floats(1.5, 4))
def test_finer_steps_cost_more_and_lose_less(factor: float) -> None:
    model = random_model(60, 1, seed=1)
    coarse, fine = quantize_splats(model), quantize_splats(model, Precision().finer(factor))
    assert fine.fixed_bits > coarse.fixed_bits
    errors = [np.abs(decode_splats(e).sh - model.sh).mean() for e in (coarse, fine)]
    assert errors[1] < errors[0]
