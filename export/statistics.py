"""What the planner wants to know of a layer: shares, and misses of a window of every size.

Misses are counted by the engine's own window (`_native.NeuronWindow`) on the sets of the
calibration text, so they are those of the eviction that will run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock import _native

# Window sizes as shares of the layer's neurons; dense where curves bend.
WINDOWS = np.array(
    [0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    np.float32,
)
WARM_SHARE = 0.25  # of the tokens, run before anything is counted
WARM_TOKENS = 256  # at most


def miss_curve(
    active: NDArray[np.bool_], windows: NDArray[np.float32] = WINDOWS
) -> NDArray[np.float32]:
    """Neurons missing from the window, per token, as a share of the layer's.

    Args:
        active: (tokens, neurons) which neurons each token needs, in the text's order.
        windows: (points,) window sizes as shares.

    Returns:
        (points,) falling with the window; 0 where the whole layer fits.
    """
    tokens, neurons = active.shape
    warm = min(WARM_TOKENS, int(tokens * WARM_SHARE))
    sets = _sets(active)
    curve = np.zeros(len(windows))
    for i, slots in enumerate(np.floor(windows.astype(np.float64) * neurons + 1e-6).astype(int)):
        if slots < neurons:  # else reading each neuron once is loading, not missing
            _, offsets = _native.NeuronWindow(neurons, int(slots)).replay(*sets)
            curve[i] = (offsets[-1] - offsets[warm]) / max(1, tokens - warm) / neurons
    # A larger window may miss a little more by chance; the planner wants a falling curve.
    shares: NDArray[np.float32] = np.minimum.accumulate(curve).astype(np.float32)
    return shares


def simulated_misses(active: NDArray[np.bool_], slots: int) -> NDArray[np.bool_]:
    """(tokens, neurons) which neurons a window of `slots` must read at each token."""
    tokens, neurons = active.shape
    ids, offsets = _native.NeuronWindow(neurons, min(slots, neurons)).replay(*_sets(active))
    missed = np.zeros_like(active)
    missed[np.repeat(np.arange(tokens), np.diff(offsets)), ids] = True
    return missed


def _sets(active: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(tokens, neurons) booleans as ids and offsets."""
    ends = np.concatenate([[0], np.cumsum(active.sum(1))]).astype(np.int64)
    return np.nonzero(active)[1].astype(np.int32), ends


def mean_run(missed: NDArray[np.bool_], order: NDArray[np.int64] | None = None) -> float:
    """Mean number of neighbouring misses that become one read, with neurons in `order` on
    storage."""
    placed = missed if order is None else missed[:, order]
    starts = placed[:, :1].sum() + (placed[:, 1:] & ~placed[:, :-1]).sum()
    return float(placed.sum() / starts) if starts else 1.0
