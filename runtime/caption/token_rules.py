"""Tokens that may not come next, as transformers' `generate` forbids them.

The names are those of `generation_config.json`. Histories count the prompt, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenRules:
    """What a captioner's tokens must keep to.

    Attributes:
        prompt: tokens that every caption starts with; at least one.
        ends: tokens that end a caption, at least one; the first stands for all of them.
        min_tokens: a caption does not end before it has as many, the prompt not counted.
        no_repeat: n-grams of this many tokens do not occur twice; 0: they may.
        suppress: never; suppress_first: not as the first token.
        bad_words: runs of tokens that do not occur.
    """

    prompt: tuple[int, ...]
    ends: tuple[int, ...]
    min_tokens: int = 0
    no_repeat: int = 0
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()

    def apply(self, scores: NDArray[np.float32], histories: Sequence[tuple[int, ...]]) -> None:
        """Set what is forbidden to minus infinity.

        Args:
            scores: log-probabilities [rows, vocabulary] of the next token, changed in place.
            histories: each row's tokens so far, from the prompt on.
        """
        first = len(histories[0]) == len(self.prompt)
        made = len(histories[0]) - len(self.prompt)
        if len(self.ends) > 1:
            scores[:, self.ends[0]] = scores[:, self.ends].max(axis=1)
            scores[:, self.ends[1:]] = -np.inf
        if made < self.min_tokens:
            scores[:, self.ends] = -np.inf
        scores[:, self.suppress] = -np.inf
        if first:
            scores[:, self.suppress_first] = -np.inf
        for row, history in enumerate(histories):
            scores[row, self._repeats(history)] = -np.inf
            scores[row, self._bad_endings(history)] = -np.inf

    def _repeats(self, history: tuple[int, ...]) -> list[int]:
        """Tokens that would repeat an n-gram of the history."""
        size = self.no_repeat
        if not size or len(history) < size:
            return []
        tail = history[len(history) - size + 1 :]
        starts = range(len(history) - size + 1)
        return [history[i + size - 1] for i in starts if history[i : i + size - 1] == tail]

    def _bad_endings(self, history: tuple[int, ...]) -> list[int]:
        """Tokens that would complete a forbidden run."""
        return [
            word[-1]
            for word in self.bad_words
            if len(word) == 1 or history[-(len(word) - 1) :] == word[:-1]
        ]
