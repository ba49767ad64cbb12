"""Runs of words, as BLEU and CIDEr-D count them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

Ngram: TypeAlias = tuple[str, ...]
LONGEST = 4  # words of the longest n-gram that is counted


def split_words(tokens: Sequence[str]) -> list[str]:
    """The words of a tokenized caption; `1 1/2` is one token and two words."""
    return [word for token in tokens for word in token.split()]


def count_ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """How often each run of one to four words is in a caption."""
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, LONGEST + 1)
        for start in range(len(words) - n + 1)
    )
