"""What may not come next: each rule alone, by hand, and together as transformers has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.runtime.caption.encoder_decoder import log_softmax
from penstock.runtime.caption.token_rules import TokenRules

PROMPT, END, VOCABULARY = (9, 1), 0, 10


def forbidden(rules: TokenRules, *made: int) -> set[int]:
    """Tokens that may not follow the prompt and these."""
    scores = np.zeros((1, VOCABULARY), np.float32)
    rules.apply(scores, [(*PROMPT, *made)])
    return set(np.flatnonzero(np.isinf(scores[0])).tolist())


def test_nothing_is_forbidden_without_rules() -> None:
    assert forbidden(TokenRules(PROMPT, (END,))) == set()
    assert forbidden(TokenRules(PROMPT, (END,)), 3, 3, 3) == set()


def test_captions_do_not_end_too_early() -> None:
    rules = TokenRules(PROMPT, (END, 7), min_tokens=2)
    assert forbidden(rules) == {END, 7}
    assert forbidden(rules, 3) == {END, 7}
    assert forbidden(rules, 3, 4) == {7}, "the first end stands for both"


def test_the_likelier_end_counts() -> None:
    scores = np.array([[-4.0, -1, -2, -3]], np.float32)
    TokenRules((1,), (0, 2)).apply(scores, [(1,)])
    assert scores.tolist() == [[-2, -1, -np.inf, -3]]


def test_repeats_count_the_prompt() -> None:
    pairs = TokenRules(PROMPT, (END,), no_repeat=2)
    assert forbidden(pairs, 9) == {1}, "9 1 is the prompt"
    assert forbidden(pairs, 5, 6, 5) == {6}
    assert forbidden(TokenRules(PROMPT, (END,), no_repeat=1), 5) == {9, 1, 5}
    assert forbidden(TokenRules(PROMPT, (END,), no_repeat=4), 5) == set()


def test_words_that_may_not_occur() -> None:
    rules = TokenRules(PROMPT, (END,), bad_words=((4,), (1, 5), (2, 3, 6)))
    assert forbidden(rules) == {4, 5}
    assert forbidden(rules, 2) == {4}
    assert forbidden(rules, 2, 3) == {4, 6}


def test_first_tokens() -> None:
    rules = TokenRules(PROMPT, (END,), suppress=(2,), suppress_first=(3,))
    assert forbidden(rules) == {2, 3}
    assert forbidden(rules, 5) == {2}


def processors(rules: TokenRules) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    start = len(rules.prompt)
    return [
        transformers.MinNewTokensLengthLogitsProcessor(start, rules.min_tokens, [END]),
        transformers.NoRepeatNGramLogitsProcessor(rules.no_repeat),
        transformers.NoBadWordsLogitsProcessor([list(word) for word in rules.bad_words], [END]),
        transformers.SuppressTokensLogitsProcessor(list(rules.suppress)),
        transformers.SuppressTokensAtBeginLogitsProcessor(list(rules.suppress_first), start),
    ]


def test_all_rules_at_once_as_transformers_has_them() -> None:
    rules = TokenRules(PROMPT, (END,), 3, 2, (2,), (3,), ((4,), (1, 5), (6, 7, 8)))
    theirs = processors(rules)
    import torch

    random = np.random.default_rng(2)
    for length in range(9):
        made: NDArray[np.int64] = random.integers(1, VOCABULARY, (4, length))
        histories = [(*PROMPT, *row) for row in made.tolist()]
        scores = log_softmax(random.normal(size=(4, VOCABULARY)).astype(np.float32))
        wanted = torch.from_numpy(scores.copy())
        for processor in theirs:
            wanted = processor(torch.tensor(histories), wanted)
        rules.apply(scores, histories)
        np.testing.assert_array_equal(scores, wanted.numpy())


def test_log_probabilities_add_up_to_one_without_overflow() -> None:
    made = log_softmax(np.array([[1e4, 0, -1e4], [1, 2, 3]], np.float32))
    np.testing.assert_allclose(np.exp(made).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(made[1], [-2.4076, -1.4076, -0.4076], atol=1e-4)
