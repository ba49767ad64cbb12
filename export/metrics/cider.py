"""CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015, arXiv 1411.5726), as COCO computes it.

Captions and references are vectors of n-gram counts, each weighed by how rare the n-gram is. For
n = 1 to 4 the cosine of the two is taken, with the caption's counts clipped to the reference's, so
that saying a word twice gains nothing, and times a Gaussian of the difference in length. The mean
over n and references, times 10, is the score of an image; that of the corpus is the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from penstock.export.metrics.caption_set import CaptionPair, CaptionSet, ImageId, MetricScore
from penstock.export.metrics.document_frequency import DocumentFrequencies
from penstock.export.metrics.ngrams import LONGEST, Ngram, count_ngrams, split_words

SIGMA = 6.0  # of the Gaussian, in words
SCALE = 10.0


@dataclass(frozen=True)
class _Vector:
    """A caption.

    Attributes:
        weights: for n = 1 to 4, count times rarity of each n-gram.
        norms: their L2 norms.
        bigrams: the length. pycocoevalcap counts pairs, not words, and its scores are the standard.
    """

    weights: Sequence[dict[Ngram, float]]
    norms: Sequence[float]
    bigrams: int


def cider_d(
    captions: CaptionSet[ImageId], frequencies: DocumentFrequencies | None = None
) -> MetricScore[ImageId]:
    """CIDEr-D, from 0 to 10; papers print it times 100.

    Args:
        captions: to score.
        frequencies: that say how rare n-grams are; without, they are counted over the references
            of `captions`, as COCO does.
    """
    if frequencies is None:
        frequencies = DocumentFrequencies.of_references(
            pair.references for pair in captions.pairs.values()
        )
    images = {image: _score(pair, frequencies) for image, pair in captions.pairs.items()}
    return MetricScore(fmean(images.values()), images)


def _score(pair: CaptionPair, frequencies: DocumentFrequencies) -> float:
    candidate = _vector(pair.candidate, frequencies)
    total = sum(_similarity(candidate, _vector(other, frequencies)) for other in pair.references)
    return SCALE * total / len(pair.references)


def _vector(tokens: Sequence[str], frequencies: DocumentFrequencies) -> _Vector:
    weights: list[dict[Ngram, float]] = [{} for _ in range(LONGEST)]
    words = split_words(tokens)
    for ngram, count in count_ngrams(words).items():
        weights[len(ngram) - 1][ngram] = count * frequencies.weigh(ngram)
    norms = [math.sqrt(sum(weight**2 for weight in part.values())) for part in weights]
    return _Vector(weights, norms, max(0, len(words) - 1))


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """The mean over n of clipped cosine times length penalty, from 0 to 1."""
    total = 0.0
    for n in range(LONGEST):
        norm = candidate.norms[n] * reference.norms[n]
        if norm > 0:
            other = reference.weights[n]
            shared = sum(
                min(weight, other[ngram]) * other[ngram]
                for ngram, weight in candidate.weights[n].items()
                if ngram in other
            )
            total += shared / norm
    difference = candidate.bigrams - reference.bigrams
    return total / LONGEST * math.exp(-(difference**2) / (2 * SIGMA**2))
