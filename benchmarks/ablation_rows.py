"""The rows of the ablation: what each keeps in memory and which mechanisms it uses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.active_sets import ActiveSets, Targets, layer_shares
from penstock.loaders.bundle import Bundle
from penstock.loaders.probe import DeviceProfile
from penstock.runtime.plan import LayerPlan, Plan
from penstock.runtime.planner import PAGE, SLOT_TABLE, PlanOptions, make_plan

STREAM_STAGING = (
    32 << 20
)  # large reads in order, at the storage's full rate; less for a small model
MATRIX_DIMS = 2


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        kind: 'naive', 'hybrid' or 'window', which decides the plan.
        overlap, bundled, reuse: FlashEngine's switches.
        keeps_window: memory beyond one token's set is used.
        warm: tokens before the measurement; tokens: measured; slow_tokens: under the throttle.
        rounds: how often it is measured; rows of the bars twice, in turn.
    """

    name: str
    kind: str
    overlap: bool
    bundled: bool
    reuse: bool
    keeps_window: bool
    warm: int
    tokens: int
    slow_tokens: int
    rounds: int

    @property
    def total_tokens(self) -> int:
        return self.warm + self.tokens + self.slow_tokens


# 32 tokens before anything is counted: the eviction learns which neurons are hot.
ROWS = (
    Row("naive", "naive", False, True, True, False, 0, 2, 1, 2),
    Row("hybrid", "hybrid", False, True, True, False, 0, 3, 1, 2),
    Row("hybrid, overlapped", "hybrid", True, True, True, False, 0, 2, 1, 1),
    Row("+ predictor", "window", False, False, False, False, 2, 6, 3, 1),
    Row("+ window", "window", False, False, True, True, 32, 14, 6, 1),
    Row("+ bundling", "window", False, True, True, True, 32, 14, 6, 1),
    Row("+ overlap (all)", "window", True, True, True, True, 32, 20, 8, 2),
)
SCRIPT_TOKENS = max(row.total_tokens for row in ROWS)


def row_plan(
    bundle: Bundle, profile: DeviceProfile, row: Row, sets: ActiveSets, budget: int, threads: int
) -> Plan:
    """An explicit plan: `budget` bytes in all, where the row uses memory at all."""
    mode = "predictor" if row.kind == "window" else "dense"
    options = PlanOptions(mode=mode, ffn_share=0.0, context=64, batch=1, threads=threads)
    base = replace(make_plan(bundle, profile, options), tokenizer=0, budget=budget)
    if row.kind == "window":
        return _with_layers(
            bundle, base, _windows(bundle, row, sets, budget - base.total + base.ffn)
        )
    staging = max(base.staging, min(STREAM_STAGING, budget // 64))
    grown = 2 * (staging - base.staging)
    base = replace(base, staging=staging, buffers=base.buffers + grown)
    if row.kind == "naive":
        names = streamable(bundle)
        streamed = sum(-(-bundle.file.tensors[n].nbytes // PAGE) * PAGE for n in names)
        base = replace(base, streamed=names, weights=base.weights - streamed)
        return _with_layers(bundle, base, [_stream(bundle, n, 0) for n in range(bundle.layers)])
    left = budget - base.total + base.ffn - bundle.layers * PAGE
    rows = max(0, min(bundle.neurons, left // (bundle.layers * bundle.stride)))
    return _with_layers(bundle, base, [_stream(bundle, n, rows) for n in range(bundle.layers)])


def streamable(bundle: Bundle) -> frozenset[str]:
    """Matrices that need not be resident: all but the tables that are read by rows."""
    tables = ("token_embd.weight", "position_embd.weight")
    return frozenset(
        name
        for name, info in bundle.resident.items()
        if len(info.shape) == MATRIX_DIMS and name not in tables and ".fc" not in name
    )


def _windows(bundle: Bundle, row: Row, sets: ActiveSets, left: int) -> list[LayerPlan]:
    slot = bundle.stride + SLOT_TABLE
    if row.keeps_window:
        shares = layer_shares(bundle.layers, Targets().active)
        whole = (left - bundle.layers * PAGE) // slot
        rows = np.minimum(bundle.neurons, (shares / shares.sum() * whole).astype(int))
    else:
        rows = sets.largest
    out = []
    for n, count in enumerate(int(r) for r in rows):
        share = count / bundle.neurons
        out.append(LayerPlan(n, "window", count, share, count * slot + PAGE, True, 0.0))
    return out


def _stream(bundle: Bundle, layer: int, rows: int) -> LayerPlan:
    size = rows * bundle.stride + PAGE
    missing = float((bundle.neurons - rows) * bundle.stride)
    return LayerPlan(layer, "stream", rows, rows / bundle.neurons, size, False, missing)


def _with_layers(bundle: Bundle, plan: Plan, layers: list[LayerPlan]) -> Plan:
    ffn = sum(layer.nbytes for layer in layers)
    return replace(plan, layers=tuple(layers), ffn=ffn)
