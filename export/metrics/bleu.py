"""BLEU-1 to BLEU-4 (Papineni et al., ACL 2002, aclanthology.org/P02-1040), as COCO computes it.

The precisions of runs of one to n words, clipped to the most that any one reference has, in their
geometric mean, times a penalty for captions shorter than their references: the length of each
image's reference is that nearest to the caption's. The corpus score comes from sums over all
images, not from a mean of scores.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.export.metrics.caption_set import CaptionPair, CaptionSet, ImageId, MetricScore
from penstock.export.metrics.ngrams import LONGEST, Ngram, count_ngrams, split_words

# pycocoevalcap adds these, so that a caption of two words has a BLEU-3; they reach the score.
_MATCHED_MORE = 1e-15
_POSSIBLE_MORE = 1e-9


@dataclass(frozen=True)
class _Matches:
    """Counts of one image or of all.

    Attributes:
        words: of the caption; reference_words: of the reference nearest in length.
        matched, possible: runs of 1 to 4 words that a reference has too, and all.
    """

    words: int
    reference_words: int
    matched: Sequence[int]
    possible: Sequence[int]


def bleu(captions: CaptionSet[ImageId]) -> tuple[MetricScore[ImageId], ...]:
    """BLEU-1, -2, -3 and -4, each from 0 to 1."""
    counted = {image: _count(pair) for image, pair in captions.pairs.items()}
    total = _Matches(
        sum(one.words for one in counted.values()),
        sum(one.reference_words for one in counted.values()),
        [sum(one.matched[n] for one in counted.values()) for n in range(LONGEST)],
        [sum(one.possible[n] for one in counted.values()) for n in range(LONGEST)],
    )
    corpus = _scores(total)
    images = {image: _scores(one) for image, one in counted.items()}
    return tuple(
        MetricScore(corpus[n], {image: scores[n] for image, scores in images.items()})
        for n in range(LONGEST)
    )


def _count(pair: CaptionPair) -> _Matches:
    words = split_words(pair.candidate)
    references = [split_words(tokens) for tokens in pair.references]
    most: Counter[Ngram] = Counter()
    for reference in references:
        most |= count_ngrams(reference)
    matched = [0] * LONGEST
    for ngram, count in count_ngrams(words).items():
        matched[len(ngram) - 1] += min(count, most[ngram])
    _, nearest = min((abs(len(other) - len(words)), len(other)) for other in references)
    possible = [max(0, len(words) - n) for n in range(LONGEST)]
    return _Matches(len(words), nearest, matched, possible)


def _scores(counts: _Matches) -> list[float]:
    """BLEU-1 to BLEU-4 of one image or of the sums of all."""
    ratio = (counts.words + _MATCHED_MORE) / (counts.reference_words + _POSSIBLE_MORE)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(LONGEST):
        product *= (counts.matched[n] + _MATCHED_MORE) / (counts.possible[n] + _POSSIBLE_MORE)
        scores.append(penalty * product ** (1 / (n + 1)))
    return scores
