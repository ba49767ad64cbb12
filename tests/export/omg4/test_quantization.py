"""Encoding: shapes in one form, errors within a step, and what each number makes good."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.export.omg4.psplat_writer import psplat_size
from penstock.export.omg4.quantization import canonical_shapes, encode_model
from penstock.export.omg4.settings import BookSizes
from penstock.loaders.splats.covariance import covariances
from penstock.loaders.splats.decoding import decode_splats
from penstock.loaders.splats.encoded import check_encoded
from penstock.loaders.splats.model import SplatModel, check_model
from penstock.loaders.splats.quaternions import multiply
from tests.export.omg4.scenes import cloud


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_shapes_of_one_form_are_the_same_shapes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(30, 4))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    scales = np.exp(rng.normal(size=(30, 3)))
    ordered, turned = canonical_shapes(scales, q)
    assert (np.diff(ordered, axis=1) <= 0).all()
    assert (turned[:, :1] >= np.abs(turned[:, 1:]) - 1e-9).all()
    assert np.linalg.norm(turned, axis=1) == pytest.approx(np.ones(30))
    assert covariances(ordered, turned) == pytest.approx(covariances(scales, q), rel=1e-4, abs=1e-5)


def test_all_24_forms_become_one() -> None:
    rng = np.random.default_rng(1)
    q = rng.normal(size=(1, 4))
    q /= np.linalg.norm(q)
    scales = np.array([[3.0, 2.0, 1.0]])
    expected = canonical_shapes(scales, q)
    half = math.sqrt(0.5)
    quarter_turns = [(half, half, 0, 0), (half, 0, half, 0), (half, 0, 0, half)]
    swaps = [(0, 2, 1), (2, 1, 0), (1, 0, 2)]  # of scales, that a quarter turn makes good
    seen = 0
    forms = [(q, scales)]
    for _ in range(3):
        forms += [
            (multiply(a, np.array([turn])), b[:, swap])
            for a, b in forms
            for turn, swap in zip(quarter_turns, swaps, strict=True)
        ]
    for a, b in forms:
        assert covariances(b, a) == pytest.approx(covariances(scales, q), abs=1e-5)
        found = canonical_shapes(b, a)
        assert found[0] == pytest.approx(expected[0]) and found[1] == pytest.approx(expected[1])
        seen += 1
    assert seen == 64


@pytest.mark.parametrize("books", [BookSizes(), BookSizes.omg4(), BookSizes.static()])
@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("coefficients", [1, 4, 16])
def test_what_is_decoded_is_near(books: BookSizes, moving: bool, coefficients: int) -> None:
    model = cloud(3000, seed=2, moving=moving, coefficients=coefficients)
    encoded = encode_model(model, books)
    check_encoded(encoded)
    found = decode_splats(encoded)
    check_model(found, "decoded")
    assert found.count == 3000 and found.degree == model.degree
    middle = np.sort(model.scales, axis=1)[:, 1:2]
    middle = np.maximum(middle, np.quantile(middle, 0.05))  # cells are no finer for the smallest
    off = np.abs(found.means - model.means)
    # Half a cell of an eighth of the size, and what a shifted t_center moves it.
    assert (off <= middle / 16 + 2**-15 + (0.003 if moving else 0)).all()
    assert found.opacities == pytest.approx(model.opacities, abs=0.02)
    logs = np.log(np.sort(found.scales, axis=1)) - np.log(np.sort(model.scales, axis=1))
    assert np.abs(logs).mean() < 0.03
    turned = np.abs(np.einsum("ni,ni->n", *(  # both in the one form
        canonical_shapes(one.scales, one.rotations)[1] for one in (found, model)
    )))  # fmt: skip
    assert np.degrees(2 * np.arccos(np.clip(np.median(turned), 0, 1))) < 4
    # Codebooks of a few thousand splats are small, or larger than these: see `bytes_a_splat`.
    assert np.sqrt(np.square(found.sh[:, 0] - model.sh[:, 0]).mean()) < 0.08
    if moving:
        assert found.motion is not None and model.motion is not None
        sigmas = found.motion.t_sigmas / model.motion.t_sigmas
        assert np.abs(np.log(sigmas)).max() < 0.2
        assert np.abs(found.motion.t_centers - model.motion.t_centers).max() < 2 / 4096


def test_the_mean_makes_good_what_t_center_lost() -> None:
    """A fast splat is at each time where it was, though its t_center is another."""
    model = cloud(500, seed=3, coefficients=1)
    assert model.motion is not None
    fast = replace(
        model,
        scales=model.scales * np.float32(0.05),
        motion=replace(model.motion, velocities=np.full((500, 3), 5, np.float32)),
    )
    # Drift and t_sigma have a code for each splat: nothing but t_center is coarse.
    books = BookSizes(time=5, t_sigma=(12,), displacement=(12,), bytes_a_splat=99)
    found = decode_splats(encode_model(fast, books))
    assert found.motion is not None
    late = found.motion.t_centers - model.motion.t_centers
    assert np.abs(late).max() > 0.02
    at_zero = [
        one.means - one.motion.velocities * one.motion.t_centers[:, None]
        for one in (fast, found)
        if one.motion is not None
    ]
    # Without that it would be late by up to 5 * 1/32 s.
    assert np.abs(at_zero[0] - at_zero[1]).max() < 0.03


def test_lasting_splats_leave_the_codes_to_the_others() -> None:
    """After one t_sigma of theirs they are far away, and nobody is there to see it."""
    model = cloud(3000, seed=9, coefficients=1)
    motion = model.motion
    assert motion is not None
    sigmas = motion.t_sigmas.copy()
    sigmas[:2000] = 150.0
    lasting = replace(model, motion=replace(motion, t_sigmas=sigmas))
    found: list[tuple[float, float]] = []
    for one in (model, lasting):
        decoded = decode_splats(encode_model(one, BookSizes()))
        assert decoded.motion is not None
        off = np.abs(decoded.motion.velocities - motion.velocities)
        # Where they are seen: at most two seconds, or three t_sigmas, from t_center.
        off *= np.minimum(2, 3 * motion.t_sigmas)[:, None]
        found.append((float(off[:2000].mean()), float(off[2000:].mean())))
        if one is lasting:
            farthest = np.maximum(motion.t_centers, 2 - motion.t_centers)[:2000]
            assert np.exp(-0.5 * np.square(farthest / decoded.motion.t_sigmas[:2000])).min() > 0.99
    # A quarter of a splat's size; 0.02 is measured.
    assert max(max(one) for one in found) < 0.12 / 4


def test_bytes_stay_under_the_paper_s() -> None:
    count = 6000
    model = cloud(count, seed=4, coefficients=16)
    encoded = encode_model(model, BookSizes())
    sizes = psplat_size(encoded)
    assert encoded.fixed_bits / 8 < 22.75
    assert sizes.bytes_a_splat < 22.75
    books = [part.codebook.levels for part in encoded.parts]
    assert sum(levels.nbytes for levels in books if levels is not None) < 3 * count


def test_harmonics_that_are_zero_take_nothing() -> None:
    model = cloud(200, seed=5)
    sh = model.sh.copy()
    sh[:, 1:] = 0
    encoded = encode_model(replace(model, sh=sh), BookSizes())
    assert not [part for part in encoded.parts if part.attribute == "rest"]
    assert (decode_splats(encoded).sh[:, 1:] == 0).all()


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_splats(count: int, moving: bool) -> None:
    model = cloud(count, seed=6, moving=moving, coefficients=16)
    encoded = encode_model(model, BookSizes())
    check_encoded(encoded)
    found = decode_splats(encoded)
    assert found.count == count
    if count:
        # Every value has a code of its own; positions are within a cell.
        assert found.sh == pytest.approx(model.sh, abs=1 / 128)
        assert found.opacities == pytest.approx(model.opacities, abs=1e-3)


def test_splats_that_count_are_nearer() -> None:
    """A tenth of the splats, of colours that are near each other."""
    model = cloud(4000, seed=7, coefficients=1)
    model.sh[:400] *= np.float32(0.3)
    weights = np.where(np.arange(4000) < 400, 1.0, 1e-3)

    def error(found: SplatModel) -> float:
        return float(np.square(found.sh[:400] - model.sh[:400]).mean())

    books = BookSizes(colour=(6,))
    plain = error(decode_splats(encode_model(model, books)))
    weighted = error(decode_splats(encode_model(model, books, weights=weights)))
    assert weighted < 0.3 * plain


def test_extreme_numbers() -> None:
    model = cloud(50, seed=8)
    assert model.motion is not None
    scales = model.scales.copy()
    scales[:10] = 0
    scales[10:20] = 1e6
    sigmas = model.motion.t_sigmas.copy()
    sigmas[:5], sigmas[5:10] = 1e-6, 1e6
    extreme = replace(model, scales=scales, motion=replace(model.motion, t_sigmas=sigmas))
    found = decode_splats(encode_model(extreme, BookSizes()))
    check_model(found, "decoded")
    assert found.scales[:10].max() < 1e-6
