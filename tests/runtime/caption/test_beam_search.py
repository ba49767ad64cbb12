"""Beam search beside an enumeration of everything that could be said."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.runtime.caption.beam_search import BeamOptions, beam_search

VOCABULARY, END, MOST = 4, 3, 4


class Table:
    """Log-probabilities that depend on everything said before; it keeps count of its steps."""

    def __init__(self, seed: int = 0, sharp: float = 2.0) -> None:
        self.seed, self.sharp = seed, sharp
        self.rows: list[tuple[int, ...]] = []
        self.steps = 0

    def of(self, said: Sequence[int]) -> NDArray[np.float32]:
        random = np.random.default_rng([self.seed, 77, *said])
        logits = self.sharp * random.normal(size=VOCABULARY)
        made: NDArray[np.float32] = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
        return made

    def begin(self) -> NDArray[np.float32]:
        self.rows, self.steps = [()], 0
        return self.of(())

    def step(self, tokens: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.float32]:
        pairs = zip(tokens.tolist(), parents.tolist(), strict=True)
        self.rows = [(*self.rows[parent], token) for token, parent in pairs]
        self.steps += 1
        return np.stack([self.of(row) for row in self.rows])


def everything(table: Table, penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """Score and tokens of all captions: ended ones, and those cut at MOST tokens."""
    found = []
    for length in range(MOST + 1):
        for said in itertools.product(range(VOCABULARY - 1), repeat=length):
            total = sum(float(table.of(said[:i])[said[i]]) for i in range(length))
            if length < MOST:
                total, count = total + float(table.of(said)[END]), length + 1
            else:
                count = MOST
            found.append((total / count**penalty, said))
    return sorted(found, key=lambda row: -row[0])


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_with_beams_for_everything_nothing_is_missed(seed: int, penalty: float) -> None:
    table = Table(seed)
    wanted = everything(table, penalty)
    beams = len(wanted)
    found = beam_search(table, BeamOptions(beams, MOST, END, length_penalty=penalty))
    assert [h.tokens for h in found] == [said for _, said in wanted]
    np.testing.assert_allclose([h.score for h in found], [score for score, _ in wanted], atol=1e-5)


def test_one_beam_is_greedy() -> None:
    lengths = set()
    for seed in range(12):
        table = Table(seed)
        said: tuple[int, ...] = ()
        total = 0.0
        while len(said) < 9:
            row = table.of(said)
            total += float(row.max())
            if int(row.argmax()) == END:
                break
            said = (*said, int(row.argmax()))
        found = beam_search(table, BeamOptions(1, 9, END))
        assert len(found) == 1 and found[0].tokens == said
        assert found[0].log_probability == pytest.approx(total, abs=1e-5)
        lengths.add(len(said))
    assert len(lengths) > 3


def test_more_beams_find_better_captions() -> None:
    better = 0
    for seed in range(20):
        scores = [
            beam_search(Table(seed), BeamOptions(beams, MOST, END))[0].score
            for beams in (1, 3, 200)
        ]
        assert max(scores) == scores[2] == pytest.approx(everything(Table(seed), 1.0)[0][0])
        better += scores[2] > scores[0]
    assert better > 1


def test_captions_come_best_first_and_no_more_than_beams() -> None:
    for seed, beams in itertools.product(range(5), (1, 2, 5)):
        found = beam_search(Table(seed), BeamOptions(beams, 7, END))
        assert 1 <= len(found) <= beams
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert all(END not in h.tokens and len(h.tokens) <= 7 for h in found)


def test_nothing_is_computed_behind_the_last_token() -> None:
    for most in (1, 2, 5):
        table = Table(1, sharp=0.1)
        beam_search(table, BeamOptions(4, most, END))
        assert table.steps <= most - 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_run_of_tokens_occurs_twice(size: int) -> None:
    repeated = 0
    for seed in range(8):
        for found in beam_search(Table(seed), BeamOptions(3, 9, END, no_repeat=size)):
            runs = [found.tokens[i : i + size] for i in range(len(found.tokens) - size + 1)]
            assert len(set(runs)) == len(runs)
        free = beam_search(Table(seed), BeamOptions(3, 9, END))[0].tokens
        runs = [free[i : i + size] for i in range(len(free) - size + 1)]
        repeated += len(set(runs)) < len(runs)
    assert repeated or size == 3


class Rows(Table):
    """Says what it is given, whatever was said before."""

    def __init__(self, *rows: Sequence[float]) -> None:
        super().__init__()
        self.given = rows

    def of(self, said: Sequence[int]) -> NDArray[np.float32]:
        row = self.given[min(len(said), len(self.given) - 1)]
        return np.array(row, np.float32)


def test_early_stopping_takes_the_first_captions_that_end() -> None:
    rows = ([-1.0, -9.0, -9.0, -0.9], [-0.1, -9.0, -9.0, -0.9], [-0.01, -9.0, -9.0, -0.02])
    patient = beam_search(Rows(*rows), BeamOptions(2, 8, END))
    hasty = beam_search(Rows(*rows), BeamOptions(2, 8, END, early_stopping=True))
    assert {len(h.tokens) for h in hasty} == {0, 1}
    assert patient[0].score > hasty[0].score and len(patient[0].tokens) > 1


def test_an_end_that_is_not_among_the_best_does_not_count() -> None:
    """As transformers does: of 2 * beams continuations, an end counts among the first `beams`."""
    rows = ([-0.5, -1.0, -9.0, -1.1], [-0.1, -0.2, -9.0, -9.0])
    found = beam_search(Rows(*rows), BeamOptions(2, 2, END))
    assert () not in {h.tokens for h in found}


def test_what_is_forbidden_is_never_said() -> None:
    never = -np.inf
    found = beam_search(Rows([never, -0.1, never, never]), BeamOptions(3, 4, END))
    assert [h.tokens for h in found] == [(1, 1, 1, 1)]
    nothing = beam_search(Rows([never] * 4), BeamOptions(3, 4, END))
    assert [h.tokens for h in nothing] == [()]
    end = beam_search(Rows([never, never, never, -0.3]), BeamOptions(3, 4, END))
    assert [h.tokens for h in end] == [()] and end[0].score == pytest.approx(-0.3)
