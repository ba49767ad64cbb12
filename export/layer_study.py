"""One layer, from its captured activations to everything a bundle says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.export.bundle_writer import StoredPredictor
from penstock.export.calibration import CapturedText
from penstock.export.neuron_order import neuron_order
from penstock.export.predictor import LayerSamples, Predictor, train_predictor
from penstock.export.report import LayerReport
from penstock.export.sources import Source
from penstock.export.statistics import mean_run, miss_curve, simulated_misses

ORDER_WINDOW = 0.25  # share of the layer that the window holds when neighbours are looked for
_SLAB_BYTES = 16 << 20


@dataclass(frozen=True)
class LayerStudy:
    """What calibration found of a layer.

    Attributes:
        order: position on storage -> neuron in the source; None: source order.
        predictor: in that order; None: none pays.
        misses, exact_misses: (points,) see `statistics.miss_curve`.
    """

    report: LayerReport
    order: NDArray[np.int64] | None
    predictor: StoredPredictor | None
    misses: NDArray[np.float32]
    exact_misses: NDArray[np.float32]


def study_layer(
    source: Source,
    layer: int,
    captured: CapturedText,
    bundle_bytes: int,
    recall_target: float,
    epochs: int,
    tick: Callable[[int], None] = lambda _: None,
) -> LayerStudy:
    """Train the predictor, choose the order, measure on the held-out windows."""
    # Fit, then thresholds, then measure; within each, the text's order.
    split = captured.split()
    by_split = np.argsort(split, kind="stable")
    inputs, hidden = captured.layer(layer, by_split)
    samples = LayerSamples(
        inputs=inputs,
        hidden=hidden,
        gate=_matrix(source, f"blk.{layer}.{'ffn_gate' if source.spec.gated else 'ffn_up'}.weight"),
        gate_bias=_vector(source, f"blk.{layer}.ffn_up.bias"),
        down_norm=_column_norms(source, f"blk.{layer}.ffn_down.weight"),
        train=int((split == 0).sum()),
        tune=int((split <= 1).sum()),
    )
    predictor = train_predictor(samples, bundle_bytes, recall_target, epochs, tick=tick)
    in_order = np.argsort(by_split)
    needed = (samples.hidden != 0)[in_order]
    if predictor is None:
        predicted = np.ones_like(needed)
    else:
        predicted = predictor.active(samples.inputs)[in_order]
    order, run_before, run_after = _order(predicted, split)
    measured = predicted[split == 2]
    report = _quality(samples, source, layer, predictor, measured, run_before, run_after)
    held = split > 0
    stored = None if predictor is None else predictor.stored(order)
    return LayerStudy(report, order, stored, miss_curve(predicted[held]), miss_curve(needed[held]))


def _order(
    predicted: NDArray[np.bool_], split: NDArray[np.int8]
) -> tuple[NDArray[np.int64] | None, float, float]:
    """An order, kept only if it makes longer runs of misses on tokens it was not made from."""
    missed = simulated_misses(predicted, int(ORDER_WINDOW * predicted.shape[1]))
    order = neuron_order(missed[split == 0])
    before, after = mean_run(missed[split > 0]), mean_run(missed[split > 0], order)
    return (order, before, after) if after > before else (None, before, before)


def _quality(
    samples: LayerSamples,
    source: Source,
    layer: int,
    predictor: Predictor | None,
    predicted: NDArray[np.bool_],
    run_before: float,
    run_after: float,
) -> LayerReport:
    hidden = samples.hidden[samples.tune :]
    active = hidden != 0
    size = np.abs(hidden)
    lost = np.where(predicted, np.float32(0), hidden)
    return LayerReport(
        layer=layer,
        active=float(active.mean()),
        predicted=float(predicted.mean()),
        rank=0 if predictor is None else predictor.rank,
        recall=_ratio((size * predicted).sum(), size.sum(), 1.0),
        false_negative_rate=_ratio((active & ~predicted).sum(), active.sum(), 0.0),
        false_positive_rate=_ratio((predicted & ~active).sum(), (~active).sum(), 0.0),
        output_error=_output_error(source, layer, lost, hidden),
        run_before=run_before,
        run_after=run_after,
    )


def _ratio(part: float, whole: float, empty: float) -> float:
    return float(part / whole) if whole else empty


def _output_error(
    source: Source, layer: int, lost: NDArray[np.float32], hidden: NDArray[np.float32]
) -> float:
    """Root mean square of what the predictor loses of the output, by that of the output."""
    name = f"blk.{layer}.ffn_down.weight"
    error = whole = 0.0
    for rows in _slabs(source, name):
        down = source.rows(name, rows)  # (rows, neurons)
        error += float(((lost @ down.T) ** 2).sum(dtype=np.float64))
        whole += float(((hidden @ down.T) ** 2).sum(dtype=np.float64))
    return float(np.sqrt(error / whole)) if whole else 0.0


def _column_norms(source: Source, name: str) -> NDArray[np.float32]:
    total = np.zeros(source.shapes[name][1])
    for rows in _slabs(source, name):
        total += (source.rows(name, rows).astype(np.float64) ** 2).sum(0)
    return np.sqrt(total).astype(np.float32)


def _slabs(source: Source, name: str) -> list[NDArray[np.int64]]:
    rows, columns = source.shapes[name]
    step = max(1, _SLAB_BYTES // (4 * columns))
    return [np.arange(at, min(at + step, rows)) for at in range(0, rows, step)]


def _matrix(source: Source, name: str) -> NDArray[np.float32]:
    return source.rows(name, np.arange(source.shapes[name][0]))


def _vector(source: Source, name: str) -> NDArray[np.float32] | None:
    return source.vector(name) if name in source.shapes else None
