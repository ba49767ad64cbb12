"""What the planner wants to know of a layer: shares, and misses of a window of every size.

Miss curves come from one pass of stack distances (Mattson et al., "Evaluation techniques for
storage hierarchies", 1970): a neuron is in a least-recently-active window of C slots exactly when
fewer than C neurons were active more recently. Neurons last active at the same token are tied; each
of them is kept with the probability that the window's last slots fall to it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
    slots = np.floor(windows.astype(np.float64) * neurons + 1e-6)  # (points,)
    last = np.full(neurons, -1, np.int64)  # token of the last activity
    missed = np.zeros(len(windows))
    for t in range(tokens):
        now = np.flatnonzero(active[t])
        if t >= warm:
            missed += _misses(last, now, t, slots)
        last[now] = t
    curve = missed / max(1, tokens - warm) / neurons
    curve[slots >= neurons] = 0.0  # reading each neuron once is loading, not missing
    shares: NDArray[np.float32] = np.clip(curve, 0.0, 1.0).astype(np.float32)
    return shares


def _misses(
    last: NDArray[np.int64], now: NDArray[np.int64], t: int, slots: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(points,) expected misses of one token."""
    size = np.bincount(last + 1, minlength=t + 1)  # neurons by the token of their last activity
    size[0] = 0  # never active: in no window
    newer = size[::-1].cumsum()[::-1] - size  # active more recently than that
    wanted = np.bincount(last[now] + 1, minlength=t + 1)
    at = np.flatnonzero(wanted)
    kept = np.clip(
        (slots[:, None] - newer[at]) / np.maximum(size[at], 1), 0.0, 1.0
    )  # (points, groups)
    kept[:, at == 0] = 0.0
    result: NDArray[np.float64] = ((1.0 - kept) * wanted[at]).sum(1)
    return result


def simulated_misses(active: NDArray[np.bool_], slots: int) -> NDArray[np.bool_]:
    """(tokens, neurons) which neurons a window of `slots` must read at each token.

    Ties of the last activity go by the neurons' numbers.
    """
    tokens, neurons = active.shape
    last = np.full(neurons, -1, np.int64)
    missed = np.zeros_like(active)
    for t in range(tokens):
        now = np.flatnonzero(active[t])
        if slots < neurons:
            held = np.zeros(neurons, bool)
            recent = np.argpartition(-last, slots - 1)[:slots] if slots else np.array([], np.int64)
            held[recent[last[recent] >= 0]] = True
        else:
            held = last >= 0
        missed[t, now] = ~held[now]
        last[now] = t
    return missed


def mean_run(missed: NDArray[np.bool_], order: NDArray[np.int64] | None = None) -> float:
    """Mean number of neighbouring misses that become one read, with neurons in `order` on
    storage."""
    placed = missed if order is None else missed[:, order]
    starts = placed[:, :1].sum() + (placed[:, 1:] & ~placed[:, :-1]).sum()
    return float(placed.sum() / starts) if starts else 1.0
