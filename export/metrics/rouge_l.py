"""ROUGE-L (Lin, ACL 2004, aclanthology.org/W04-1013), as COCO computes it.

The longest common subsequence of a caption and a reference, over the words of either, gives
precision and recall. Of both the best over the references counts, and not necessarily of the same
one. The corpus score is the mean over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from penstock.export.metrics.caption_set import CaptionPair, CaptionSet, ImageId, MetricScore

BETA = 1.2  # how many times recall counts more than precision


def rouge_l(captions: CaptionSet[ImageId]) -> MetricScore[ImageId]:
    """ROUGE-L, from 0 to 1."""
    images = {image: _score(pair) for image, pair in captions.pairs.items()}
    return MetricScore(fmean(images.values()), images)


def _score(pair: CaptionPair) -> float:
    candidate = pair.candidate or [""]  # pycocoevalcap: no words are one word without letters
    precision = recall = 0.0
    for tokens in pair.references:
        reference = tokens or [""]
        common = longest_common_subsequence(candidate, reference)
        precision = max(precision, common / len(candidate))
        recall = max(recall, common / len(reference))
    if precision == 0:  # and then recall is too
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Words of the longest sequence that both have in this order, gaps allowed."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]
