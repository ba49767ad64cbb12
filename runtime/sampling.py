"""From logits to the next token.

The steps, in this order; each works on what the one before left:

1. repetition penalty: logits of tokens in the last `repetition_window` ids are divided by
   `repetition_penalty` where positive and multiplied where negative (CTRL, arXiv 1909.05858).
2. temperature 0: the highest logit wins, the lowest id on a tie. Done.
3. temperature: logits are divided by it.
4. top-k: the `top_k` highest stay; on a tie the lowest ids.
5. top-p: the fewest highest whose share reaches `top_p` stay (arXiv 1904.09751).
6. min-p: those with at least `min_p` times the share of the best stay (arXiv 2407.01082).
7. One is drawn from what is left, by share, with numpy's PCG64 seeded with `seed`.

The same seed and logits give the same tokens on every platform: ties are settled by id, and numpy
promises the PCG64 stream. What is left is the last bit of `exp`, which can only matter when the
draw falls within 1e-15 of the line between two tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, UsageError
from penstock.runtime.stop_strings import check_stops


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens, and when to stop. The defaults are greedy.

    Attributes:
        temperature: 0 takes the best token; higher is more random.
        top_k: how many tokens may be drawn; 0 means all.
        top_p: the share of probability that may be drawn, over 0 to 1; 1 means all.
        min_p: the least share relative to the best token, 0 to 1; 0 means all.
        repetition_penalty: over 1 discourages tokens seen lately; 1 does nothing.
        repetition_window: how many of the last tokens count as lately; 0 means none.
        seed: start of the random numbers, 0 to 2^64 - 1; None takes a fresh one.
        stop: strings that end the text and are not part of it.
        max_tokens: how many tokens are generated at most.

    Raises:
        UsageError: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 256

    def __post_init__(self) -> None:
        temperature = _number("temperature", self.temperature)
        _require(temperature >= 0, "temperature", temperature, "0 or more")
        top_p = _number("top_p", self.top_p)
        _require(0 < top_p <= 1, "top_p", top_p, "more than 0 and at most 1")
        min_p = _number("min_p", self.min_p)
        _require(0 <= min_p <= 1, "min_p", min_p, "from 0 to 1")
        penalty = _number("repetition_penalty", self.repetition_penalty)
        _require(penalty > 0, "repetition_penalty", penalty, "more than 0")
        _whole("top_k", self.top_k, least=0)
        _whole("repetition_window", self.repetition_window, least=0)
        _whole("max_tokens", self.max_tokens, least=1)
        if self.seed is not None:
            _whole("seed", self.seed, least=0)
            _require(self.seed < 1 << 64, "seed", self.seed, "less than 2^64")
        check_stops(self.stop)
        object.__setattr__(self, "stop", tuple(self.stop))


class Sampler:
    """Chooses tokens; keeps the state of its random numbers, so one is needed for each stream.

    Attributes:
        params: what it was made with.
        seed: the seed in use, also when `params.seed` is None, to repeat a run.
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        fresh_seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        self.seed = fresh_seed if params.seed is None else int(params.seed)
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    def sample(self, logits: NDArray[np.float32], history: Sequence[int] = ()) -> int:
        """The next token id.

        Args:
            logits: (vocab,), not changed. Minus infinity forbids a token.
            history: the ids so far, prompt included; read only for the repetition penalty.

        Raises:
            PenstockError: logits are NaN, plus infinity, or all minus infinity: a broken model.
            UsageError: logits are not one row, or history holds an id outside the vocabulary.
        """
        if logits.ndim != 1 or logits.size == 0:
            raise UsageError(f"logits have shape {logits.shape}; expected (vocab,).")
        best = float(np.max(logits))  # NaN if any is NaN
        if not math.isfinite(best):
            raise PenstockError(
                f"the highest logit is {best}; expected a finite number. The model file is "
                "damaged, or its numbers overflow: check it, or run it in a wider format."
            )
        logits = self._penalized(logits, history)
        if self.params.temperature == 0:
            return int(np.argmax(logits))
        ids, weights = self._candidates(logits)
        cumulative = np.cumsum(weights)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        # Rounding can put the draw on the far end, past every weight.
        last = int(np.flatnonzero(weights)[-1]) if drawn >= ids.size else int(drawn)
        return int(ids[last])

    def _penalized(
        self, logits: NDArray[np.float32], history: Sequence[int]
    ) -> NDArray[np.float32]:
        penalty, window = self.params.repetition_penalty, self.params.repetition_window
        if penalty == 1.0 or window == 0 or len(history) == 0:
            return logits
        seen = np.unique(np.asarray(history[-window:], dtype=np.int64))
        if seen[0] < 0 or seen[-1] >= logits.size:
            raise UsageError(
                f"history holds the ids {seen[0]} to {seen[-1]}; expected 0 to {logits.size - 1}."
            )
        logits = logits.copy()
        values = logits[seen].astype(np.float64)
        with np.errstate(over="ignore"):  # an absurd penalty may reach -inf: forbidden then
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        return logits

    def _candidates(
        self, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The ids that may be drawn and their weights, in float64, the best being 1."""
        params = self.params
        scaled = logits.astype(np.float64)
        scaled -= scaled.max()
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf
            scaled /= params.temperature
        if params.top_k and params.top_k < scaled.size:
            ids = _highest(scaled, params.top_k)
        else:
            ids = np.arange(scaled.size)
        if params.top_p < 1:
            ids = _nucleus(scaled, ids, params.top_p)
        weights = np.exp(scaled[ids])
        if params.min_p > 0:
            kept = weights >= params.min_p
            ids, weights = ids[kept], weights[kept]
        return ids, weights


# Without top-k the nucleus is looked for among this many first. In a trained model it is nearly
# always there, and picking them is ten times faster than sorting a vocabulary of 128,000.
_NUCLEUS_FIRST = 512


def _nucleus(
    scaled: NDArray[np.float64], ids: NDArray[np.int64], top_p: float
) -> NDArray[np.int64]:
    """The fewest highest of `ids` whose share of the weight reaches `top_p`, best first."""
    values = scaled[ids]
    wanted = top_p * np.exp(values).sum()
    count = _NUCLEUS_FIRST
    while True:
        order = _highest(values, count) if count < ids.size else np.arange(ids.size)
        # Stable, and `order` is by id: equal values stay in the order of their ids.
        order = order[np.argsort(-values[order], kind="stable")]
        cumulative = np.cumsum(np.exp(values[order]))
        if cumulative[-1] >= wanted or count >= ids.size:
            return ids[order[: int(np.searchsorted(cumulative, wanted)) + 1]]
        count *= 8


def _highest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions of the `count` highest values in ascending order; on a tie the first ones.

    `np.argpartition` alone would settle ties differently from one processor to the next.
    """
    threshold = np.partition(values, values.size - count)[values.size - count]
    above = np.flatnonzero(values > threshold)
    tied = np.flatnonzero(values == threshold)[: count - above.size]
    return np.sort(np.concatenate([above, tied]))


def _number(name: str, value: object) -> float:
    ok = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    _require(ok and math.isfinite(value), name, value, "a finite number")  # type: ignore[arg-type]
    return float(value)  # type: ignore[arg-type]


def _whole(name: str, value: object, least: int) -> None:
    ok = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    _require(ok and value >= least, name, value, f"a whole number, {least} or more")  # type: ignore[operator]


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise UsageError(f"{name} is {value!r}; expected {expected}.")
