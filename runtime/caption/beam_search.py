"""Beam search over a model that gives the log-probabilities of one next token at a time.

Scored as transformers' `generate` scores: the sum of log-probabilities over the length to the
power of `length_penalty`; of the 2 * beams best continuations of a step those that end a caption
are finished, if they are among the first `beams`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class StepModel(Protocol):
    """A captioner that has seen its photo and is asked for one token after another."""

    def begin(self) -> NDArray[np.float32]:
        """Log-probabilities [vocabulary] of the first token."""
        ...

    def step(self, tokens: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.float32]:
        """Log-probabilities [beams, vocabulary] of the token after `tokens`.

        Args:
            tokens: [beams], the last token of each beam.
            parents: [beams], which beam of the last step each of them continues. After `begin`
                there is one, 0.
        """
        ...


@dataclass(frozen=True)
class BeamOptions:
    """How captions are searched for.

    Attributes:
        beams: 1 is greedy.
        max_tokens: at most, the end not counted.
        end: the token that ends a caption.
        length_penalty: 0 prefers short captions, 1 compares by the mean.
        no_repeat: n-grams of this many tokens do not occur twice; 0: they may.
        early_stopping: stop at `beams` finished captions, whatever might still come.
    """

    beams: int
    max_tokens: int
    end: int
    length_penalty: float = 1.0
    no_repeat: int = 0
    early_stopping: bool = False


@dataclass(frozen=True)
class Hypothesis:
    """A caption found: tokens without the end, and what it is ranked by."""

    tokens: tuple[int, ...]
    log_probability: float
    score: float


def beam_search(model: StepModel, options: BeamOptions) -> list[Hypothesis]:
    """The captions found, best first; at least one."""
    width = options.beams
    sequences: list[tuple[int, ...]] = [()]
    sums = np.zeros(1)
    finished: list[Hypothesis] = []
    log_probs = model.begin()[None, :]
    for length in range(1, options.max_tokens + 1):
        log_probs = _without_repeats(log_probs, sequences, options.no_repeat)
        totals = sums[:, None] + log_probs
        ends: list[tuple[float, int]] = []
        goes_on: list[tuple[float, int, int]] = []
        for rank, flat in enumerate(_best(totals.ravel(), 2 * width)):
            parent, token = divmod(int(flat), log_probs.shape[1])
            total = float(totals[parent, token])
            if not np.isfinite(total):
                continue
            if token == options.end:
                if rank < width:
                    ends.append((total, parent))
            elif len(goes_on) < width:
                goes_on.append((total, parent, token))
        for total, parent in ends:
            finished.append(_hypothesis(sequences[parent], total, length, options))
        finished = sorted(finished, key=lambda found: -found.score)[:width]
        last = length == options.max_tokens  # captions cut there stand for election, too
        if not goes_on or (not last and _is_done(finished, goes_on[0][0], length, options)):
            return finished or [_hypothesis(sequences[0], float(sums[0]), length, options)]
        sums = np.array([total for total, _, _ in goes_on])
        parents = np.array([parent for _, parent, _ in goes_on], np.int64)
        tokens = np.array([token for _, _, token in goes_on], np.int64)
        sequences = [(*sequences[parent], token) for _, parent, token in goes_on]
        if not last:
            log_probs = model.step(tokens, parents)
    cut = [
        _hypothesis(sequence, float(total), options.max_tokens, options)
        for sequence, total in zip(sequences, sums, strict=True)
    ]
    return sorted([*finished, *cut], key=lambda found: -found.score)[:width]


def _is_done(
    finished: list[Hypothesis], best_sum: float, length: int, options: BeamOptions
) -> bool:
    if len(finished) < options.beams:
        return False
    if options.early_stopping or options.beams == 1:
        return True
    attainable: float = best_sum / length**options.length_penalty
    return finished[-1].score >= attainable


def _hypothesis(
    tokens: tuple[int, ...], total: float, length: int, options: BeamOptions
) -> Hypothesis:
    return Hypothesis(tokens, total, total / length**options.length_penalty)


def _best(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the largest values, the largest first; of equal ones the first."""
    count = min(count, values.size)
    if count == 1:
        return np.array([values.argmax()])
    chosen = np.argpartition(-values, count - 1)[:count]
    return chosen[np.lexsort((chosen, -values[chosen]))]


def _without_repeats(
    log_probs: NDArray[np.float32], sequences: list[tuple[int, ...]], size: int
) -> NDArray[np.float32]:
    if not size or len(sequences[0]) < size:
        return log_probs
    allowed = log_probs.copy()
    for row, sequence in enumerate(sequences):
        tail = sequence[len(sequence) - size + 1 :]
        for start in range(len(sequence) - size + 1):
            if sequence[start : start + size - 1] == tail:
                allowed[row, sequence[start + size - 1]] = -np.inf
    return allowed
