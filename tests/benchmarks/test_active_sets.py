"""The generator of active sets against the published statistics."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.active_sets import (
    FITTED,
    PUBLISHED_LAYERS,
    WINDOW_TOKENS,
    ActiveSets,
    Targets,
    fit,
    generate,
    layer_shares,
    measure,
)
from penstock import _native

LAYERS, NEURONS, TOKENS = 8, 8192, 40


@pytest.fixture(scope="module")
def sets() -> ActiveSets:
    return generate(LAYERS, NEURONS, TOKENS, seed=5)


def test_published_statistics_are_met(sets: ActiveSets) -> None:
    targets, found = Targets(), sets.measured
    for name in ("active", "predicted", "fresh", "window"):
        assert getattr(found, name) == pytest.approx(getattr(targets, name), rel=0.05), name


def test_the_fit_finds_the_stored_constants() -> None:
    found = fit(Targets(), neurons=4096, tokens=24, layers=4)
    assert found.popularity == pytest.approx(FITTED.popularity, abs=0.06)
    assert found.topic == pytest.approx(FITTED.topic, abs=0.06)


def test_sets_are_what_the_decoder_takes(sets: ActiveSets) -> None:
    assert sets.ids.dtype == np.int32 and sets.offsets.dtype == np.int64
    assert sets.offsets[0] == 0 and sets.offsets[-1] == sets.ids.size
    assert sets.offsets.size == LAYERS * TOKENS + 1
    for begin, end in zip(sets.offsets[:40], sets.offsets[1:41], strict=True):
        one = sets.ids[begin:end]
        assert (np.diff(one) > 0).all() and one.min() >= 0 and one.max() < NEURONS


def test_a_window_of_the_published_size_reads_the_published_share(sets: ActiveSets) -> None:
    shares = layer_shares(LAYERS, Targets().active)
    missing = []
    for layer in range(LAYERS):
        rows = int(NEURONS * Targets().window * shares[layer] / Targets().active * 1.1)
        window = _native.NeuronWindow(NEURONS, rows, WINDOW_TOKENS)
        for token in range(TOKENS):
            at = token * LAYERS + layer
            window.update(sets.ids[sets.offsets[at] : sets.offsets[at + 1]])
            if token > 2 * WINDOW_TOKENS:
                missing.append((len(window.misses) + len(window.overflow)) / NEURONS)
    assert np.mean(missing) == pytest.approx(Targets().fresh, rel=0.1)


def test_layers_follow_the_published_profile() -> None:
    shares = layer_shares(32, 0.033)
    assert shares.mean() == pytest.approx(0.033)
    assert shares[31] / shares[0] == pytest.approx(PUBLISHED_LAYERS[2][1] / PUBLISHED_LAYERS[0][1])


def test_the_same_seed_gives_the_same_sets() -> None:
    one, two = generate(2, 512, 8, seed=1), generate(2, 512, 8, seed=1)
    assert np.array_equal(one.ids, two.ids)
    assert not np.array_equal(one.ids, generate(2, 512, 8, seed=2).ids)


def test_measure_counts_by_hand() -> None:
    predicted = np.zeros((WINDOW_TOKENS + 1, 10), bool)
    predicted[:, 0] = True  # always
    predicted[1, 1] = True  # within the window
    predicted[WINDOW_TOKENS, 2] = True  # new in the last token
    found = measure(predicted, predicted)
    assert found.fresh == pytest.approx(0.1)
    assert found.window == pytest.approx(0.2)
