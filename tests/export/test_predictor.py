"""Predictors on made-up layers whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.errors import BackendMissingError
from penstock.export.predictor import LayerSamples, calibrated, train_predictor


def made_up(
    rank: int, threshold: float, tokens: int = 1600, width: int = 64, neurons: int = 192
) -> LayerSamples:
    """A squared-ReLU layer whose up matrix has `rank` directions that matter."""
    rng = np.random.default_rng(5)
    up = rng.normal(size=(neurons, rank)) @ rng.normal(size=(rank, width)) / (rank * width) ** 0.5
    inputs = rng.normal(size=(tokens, width)).astype(np.float32)
    bias = np.full(neurons, -threshold, np.float32)
    hidden = np.maximum(inputs @ up.T.astype(np.float32) + bias, 0) ** 2
    norm = rng.uniform(0.5, 1.5, neurons).astype(np.float32)
    train, tune = tokens * 6 // 8, tokens * 7 // 8
    return LayerSamples(inputs, hidden, up.astype(np.float32), bias, norm, train, tune)


def quality(samples: LayerSamples, target: float, **options: object) -> tuple[int, float, float]:
    """Rank, recall of magnitude and predicted share on tokens that nothing was fitted to."""
    found = train_predictor(samples, 4096, target, **options)  # type: ignore[arg-type]
    assert found is not None
    predicted = found.active(samples.inputs[samples.tune :])
    hidden = samples.hidden[samples.tune :]
    return found.rank, float((hidden * predicted).sum() / hidden.sum()), float(predicted.mean())


def test_a_layer_of_low_rank_is_predicted_almost_exactly() -> None:
    samples = made_up(rank=12, threshold=1.5)
    active = float((samples.hidden[samples.tune :] > 0).mean())
    rank, recall, predicted = quality(samples, 0.99)
    assert rank == 32
    assert recall > 0.98
    assert predicted < 1.1 * active


@pytest.mark.parametrize("target", [0.8, 0.95, 0.99])
def test_the_recall_target_is_met_and_costs_neurons(target: float) -> None:
    samples = made_up(rank=48, threshold=1.5)
    _, recall, predicted = quality(samples, target, ranks=(32,), epochs=4)
    assert abs(recall - target) < 0.5 * (1 - target) + 0.01
    if target < 0.99:
        assert predicted < quality(samples, 0.99, ranks=(32,), epochs=4)[2]


def test_refining_spends_the_rank_on_what_matters() -> None:
    """The closed form serves all neurons alike; here a quarter of them carry the output."""
    samples = made_up(rank=48, threshold=1.0, tokens=4000)
    norm = np.where(np.arange(192) < 48, 10.0, 0.01).astype(np.float32)
    hidden = samples.hidden * (norm > 1)  # the recall counts them only
    samples = replace(samples, down_norm=norm, hidden=hidden)
    start = quality(samples, 0.98, ranks=(32,), epochs=0)
    refined = quality(samples, 0.98, ranks=(32,), epochs=8)
    assert refined[2] < 0.9 * start[2]


def test_refining_on_too_few_tokens_is_thrown_away() -> None:
    samples = made_up(rank=48, threshold=1.5, tokens=320)
    start = quality(samples, 0.95, ranks=(32,), epochs=0)
    refined = quality(samples, 0.95, ranks=(32,), epochs=40)
    assert refined[2] < 1.3 * start[2]


def test_a_layer_that_is_not_sparse_gets_no_predictor() -> None:
    assert train_predictor(made_up(rank=64, threshold=-3.0), 4096, 0.99, epochs=1) is None


def test_a_layer_where_nothing_fires_predicts_nothing() -> None:
    samples = made_up(rank=16, threshold=50.0)
    assert not samples.hidden.any()
    found = train_predictor(samples, 4096, 0.99, epochs=1)
    assert found is not None and found.active(samples.inputs).mean() < 0.01


def test_bytes_are_what_was_trained() -> None:
    """Weights are rounded before thresholds are set, so storing them changes nothing."""
    from penstock.quant.blocks import decode_rows

    samples = made_up(rank=12, threshold=1.0)
    found = train_predictor(samples, 4096, 0.99, epochs=1)
    assert found is not None
    order = np.random.default_rng(0).permutation(192)
    stored = found.stored(order)
    assert stored.fc1.nbytes + stored.fc2.nbytes + stored.bias.nbytes == found.nbytes
    assert (decode_rows(stored.fc2, found.form) == found.fc2[order]).all()
    assert (stored.bias == found.bias[order]).all()


def test_calibrating_again_is_stable() -> None:
    samples = made_up(rank=48, threshold=1.5)
    found = train_predictor(samples, 4096, 0.95, ranks=(32,), epochs=2)
    assert found is not None
    again = calibrated(samples, found, 0.95)
    assert abs(again.active(samples.inputs).mean() - found.active(samples.inputs).mean()) < 0.02


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendMissingError, match=r"penstock\[export\]"):
        train_predictor(made_up(rank=12, threshold=1.5), 4096)
