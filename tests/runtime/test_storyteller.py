"""The embedded model: size, sparsity, and what its predictors cost on the validation book."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.export.perplexity import HeldOutText, bundle_perplexity, held_out_text
from penstock.loaders.bundle import Bundle, open_bundle
from penstock.runtime.embedded import embedded_model
from penstock.runtime.flash_engine import FlashEngine

TOKENS = 4096
BYTES_MOST = 16 << 20
SPARSITY_LEAST = 0.85
PREDICTOR_COST_MOST = 1.02  # of dense perplexity


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(embedded_model())


@pytest.fixture(scope="module")
def held_out(bundle: Bundle, shared_dir: Path) -> HeldOutText:
    """From the middle of the book that training never saw."""
    text = (shared_dir / "data/fairytales/The-Lilac-Fairy-Book_3454.txt").read_text()
    return held_out_text(bundle, text[len(text) // 2 :], TOKENS)


def test_it_is_small_and_every_layer_has_a_predictor(bundle: Bundle) -> None:
    assert bundle.file.size <= BYTES_MOST
    assert all(bundle.predictors)
    assert all(bundle.profiles)


def test_most_neurons_are_silent_on_the_validation_book(
    bundle: Bundle, held_out: HeldOutText
) -> None:
    engine = FlashEngine.open_dense(bundle)
    active = []
    for window in held_out.windows[:6]:
        engine.reset()
        _, _, hidden = engine.captured_prefill(window[: engine.plan.batch])
        active.append((hidden != 0).mean(axis=(1, 2)))
    assert 1 - np.mean(active) >= SPARSITY_LEAST


def test_predictors_cost_at_most_two_percent_of_perplexity(
    bundle: Bundle, held_out: HeldOutText
) -> None:
    nats = {
        mode: bundle_perplexity(bundle, held_out, mode, threads=1)
        for mode in ("dense", "predictor")
    }
    report = {mode: held_out.report(n, "", mode) for mode, n in nats.items()}
    assert report["predictor"].perplexity <= PREDICTOR_COST_MOST * report["dense"].perplexity
    # The starting model has 1.415 bits a character over the whole book.
    assert report["dense"].bits_per_character < 1.415
