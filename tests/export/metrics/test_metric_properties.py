"""What holds of the metrics whatever the captions say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.export.metrics.bleu import bleu
from penstock.export.metrics.caption_set import CaptionPair, CaptionSet
from penstock.export.metrics.cider import cider_d
from penstock.export.metrics.document_frequency import DocumentFrequencies
from penstock.export.metrics.rouge_l import longest_common_subsequence, rouge_l

WORDS = ["a", "dog", "cat", "on", "the", "grass", "runs"]
SLACK = 1e-8  # BLEU's small constants and rounding

captions = st.lists(st.sampled_from(WORDS), max_size=9)
pairs = st.builds(CaptionPair, captions, st.lists(captions, min_size=1, max_size=4))
sets = st.lists(pairs, min_size=1, max_size=5).map(lambda many: CaptionSet(dict(enumerate(many))))


def corpus_scores(captions: CaptionSet[int]) -> list[float]:
    scores = [*bleu(captions), rouge_l(captions), cider_d(captions)]
    return [score.corpus for score in scores]


@given(sets)
def test_scores_stay_in_their_ranges(captions: CaptionSet[int]) -> None:
    for score in [*bleu(captions), rouge_l(captions)]:
        assert set(score.images) == set(captions.pairs)
        for value in [score.corpus, *score.images.values()]:
            assert 0 <= value <= 1 + SLACK
    score = cider_d(captions)
    for value in [score.corpus, *score.images.values()]:
        assert 0 <= value <= 10 + SLACK


@given(sets, st.randoms(use_true_random=False))
def test_no_order_matters(captions: CaptionSet[int], random: Random) -> None:
    images = list(captions.pairs)
    random.shuffle(images)
    turned = {
        image: CaptionPair(captions.pairs[image].candidate, captions.pairs[image].references[::-1])
        for image in images
    }
    assert corpus_scores(CaptionSet(turned)) == pytest.approx(corpus_scores(captions))


@given(sets, st.permutations(WORDS))
def test_words_are_only_names(captions: CaptionSet[int], other: Sequence[str]) -> None:
    renamed = dict(zip(WORDS, other, strict=True))

    def rename(tokens: Sequence[str]) -> list[str]:
        return [renamed[token] for token in tokens]

    changed = {
        image: CaptionPair(rename(pair.candidate), [rename(other) for other in pair.references])
        for image, pair in captions.pairs.items()
    }
    assert corpus_scores(CaptionSet(changed)) == pytest.approx(corpus_scores(captions))


@given(sets)
def test_the_corpus_score_is_the_mean_but_for_bleu(captions: CaptionSet[int]) -> None:
    for score in (rouge_l(captions), cider_d(captions)):
        mean = sum(score.images.values()) / len(score.images)
        assert score.corpus == pytest.approx(mean)


@given(st.lists(st.sampled_from(WORDS), min_size=4, max_size=9))
def test_a_caption_equal_to_its_reference_has_the_best_score(words: list[str]) -> None:
    one = CaptionSet({1: CaptionPair(words, [words])})
    assert [score.corpus for score in bleu(one)] == pytest.approx([1] * 4)
    assert rouge_l(one).corpus == pytest.approx(1)
    assert cider_d(one, DocumentFrequencies(1000, {})).corpus == pytest.approx(10)


@given(captions, st.lists(captions, min_size=1, max_size=4))
def test_no_word_in_common_is_nothing(words: list[str], references: list[list[str]]) -> None:
    strange = ["x" + word for word in words] or ["x"]
    one = CaptionSet({1: CaptionPair(strange, references)})
    assert [score.corpus for score in bleu(one)] == pytest.approx([0] * 4, abs=1e-3)
    assert rouge_l(one).corpus == 0
    assert cider_d(one, DocumentFrequencies(1000, {})).corpus == 0


@given(captions, st.lists(captions, min_size=1, max_size=3), captions)
def test_one_more_reference_never_lowers_rouge(
    words: list[str], references: list[list[str]], more: list[str]
) -> None:
    before = rouge_l(CaptionSet({1: CaptionPair(words, references)})).corpus
    after = rouge_l(CaptionSet({1: CaptionPair(words, [*references, more])})).corpus
    assert after >= before - SLACK


@given(st.integers(2, 9))
def test_saying_a_word_again_gains_nothing(times: int) -> None:
    reference = ["a", "dog", "runs", "on", "the", "grass"]
    few = DocumentFrequencies(1000, {})
    once = CaptionSet({1: CaptionPair(["dog", *["x"] * (times - 1)], [reference])})
    often = CaptionSet({1: CaptionPair(["dog"] * times, [reference])})
    assert bleu(often)[0].corpus == pytest.approx(bleu(once)[0].corpus)
    assert rouge_l(often).corpus == pytest.approx(rouge_l(once).corpus)
    single = CaptionSet({1: CaptionPair(["dog"], [reference])})
    assert cider_d(often, few).corpus <= cider_d(single, few).corpus * 1.2


@given(captions, captions)
def test_the_longest_common_subsequence_is_that(first: list[str], second: list[str]) -> None:
    def subsequences(words: list[str]) -> set[tuple[str, ...]]:
        sizes = range(len(words) + 1)
        return {picked for size in sizes for picked in itertools.combinations(words, size)}

    longest = max(map(len, subsequences(first) & subsequences(second)))
    assert longest_common_subsequence(first, second) == longest
