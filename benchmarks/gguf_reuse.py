"""Makes synthetic routing realistic: neighbouring tokens share experts, distant ones do not.

With random weights, tokens that follow each other choose their experts independently: of 8 in 64,
12.5 % stay from one token to the next. Trained models keep more. Three things give that to a model
of random weights, without training and for any text:

1. The first 32 dimensions of the hidden state are constant: all token embeddings have the same
   values there, and no matrix writes to them. Queries and keys take nearly everything from them, so
   they are the same for all tokens, and after RoPE an attention score depends on the distance
   alone. Its amplitudes, chosen for each frequency, make it fall off within some ten tokens.
2. The next dimensions are written by layer 0's attention alone, which averages over those tokens:
   the hidden state has a part that changes slowly. It stays as it is through all layers.
3. Each layer's router takes a share of its logits from that part, the rest from the remaining
   dimensions, which differ from token to token.

The share follows from the reuse that is asked for: overlaps of the top k of correlated normal
logits are computed by simulation, and how the average correlates from one token to the next follows
from the attention weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
CONSTANT = 32  # dimensions
PEAK_SCORE = 14.0  # attention score at distance zero; beyond the window it is near zero
SLOWEST, FASTEST = 0.01, 0.15  # radians a token, of the RoPE frequencies that are used
SPREAD = 1.5  # deviation of a router's logits


def slow_columns(width: int) -> int:
    """How many dimensions change slowly: an eighth, in whole blocks."""
    return max(32, width // 8 // 32 * 32)


@dataclass(frozen=True)
class Window:
    """The average that attention takes of the last tokens.

    Attributes:
        head: what every query and key of a head is (head_dim); pairs of RoPE as `neox` says.
        weights: of the token itself, of the one before and so on.
        jitter: deviation of a score from token to token; it makes weights uneven.
    """

    head: Floats
    weights: Floats
    jitter: float

    @property
    def deviation(self) -> float:
        """Of the average, where single values have deviation 1."""
        return float(np.sqrt((self.weights**2).sum()) * np.exp(self.jitter**2 / 2))

    @property
    def correlation(self) -> float:
        """Between the averages at one token and at the next."""
        w = self.weights
        return float((w[1:] * w[:-1]).sum() / (w**2).sum())


def window(head_dim: int, rope_base: float, neox: bool, normed: bool, width: int) -> Window:
    """Constant queries and keys whose score falls with distance, and the weights that follow.

    normed: queries and keys are. If not, the norm of a token's hidden state scales its keys.
    """
    score_scale = head_dim**-0.5
    varying = width - CONSTANT - slow_columns(width)
    length = varying / (varying + CONSTANT) / np.sqrt(2 * varying)
    jitter = 0.0 if normed else float(PEAK_SCORE * length)
    angles = rope_base ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    used = (angles >= SLOWEST) & (angles <= FASTEST)
    power = used * PEAK_SCORE / used.sum() / score_scale
    pair = np.sqrt(power / 2).astype(np.float32)
    head = np.concatenate([pair, pair]) if neox else np.repeat(pair, 2)
    distance = np.arange(4096)[:, None]
    scores = (power * np.cos(distance * angles)).sum(axis=1) * score_scale
    weights = np.exp(scores - scores.max())
    return Window(head, (weights / weights.sum()).astype(np.float32), jitter)


def _logits(correlation: float, experts: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    first, fresh = rng.standard_normal((2, 4000, experts))
    return first, correlation * first + np.sqrt(1 - correlation**2) * fresh


def expected_reuse(correlation: float, experts: int, used: int) -> float:
    """Share of a token's experts that the next one uses too, for this correlation of logits."""
    top = [np.argsort(-x, axis=1)[:, :used] for x in _logits(correlation, experts)]
    chosen = [np.zeros((4000, experts), bool) for _ in top]
    for mask, index in zip(chosen, top, strict=True):
        np.put_along_axis(mask, index, True, axis=1)
    return float((chosen[0] & chosen[1]).sum(axis=1).mean() / used)


def slow_share(reuse: float, experts: int, used: int, window: Window) -> float:
    """Share of the logits' variance that the slow part must have for this reuse.

    Raises:
        ValueError: no share gives it: below chance, or above what the window's length allows.
    """
    least = expected_reuse(0.0, experts, used)
    most = expected_reuse(window.correlation, experts, used)
    if not least <= reuse <= most:
        raise ValueError(
            f"a reuse of {reuse:.3f} is not possible for {used} of {experts} experts: expected "
            f"{least:.3f} (chance) to {most:.3f}"
        )
    low, high = 0.0, window.correlation
    for _ in range(20):
        middle = (low + high) / 2
        below = expected_reuse(middle, experts, used) < reuse
        low, high = (middle, high) if below else (low, middle)
    return low / window.correlation


def mean_square_weight(experts: int, used: int, over_chosen: bool) -> float:
    """Sum of the squared weights of a token's experts, which scales the sum of their outputs.

    over_chosen: the weights are normed over the chosen experts, not over all.
    """
    logits = np.sort(_logits(0.0, experts)[0] * SPREAD, axis=1)[:, ::-1]
    weights = np.exp(logits)
    norm = (weights[:, :used] if over_chosen else weights).sum(axis=1, keepdims=True)
    return float(((weights[:, :used] / norm) ** 2).sum(axis=1).mean())
