"""All metrics of a set of captions at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from penstock.export.metrics.bleu import bleu
from penstock.export.metrics.caption_set import CaptionSet, ImageId, MetricScore
from penstock.export.metrics.cider import cider_d
from penstock.export.metrics.document_frequency import DocumentFrequencies
from penstock.export.metrics.rouge_l import rouge_l


@dataclass(frozen=True)
class CaptionScores(Generic[ImageId]):
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of the same captions."""

    bleu: tuple[MetricScore[ImageId], ...]
    rouge_l: MetricScore[ImageId]
    cider_d: MetricScore[ImageId]

    def corpus(self) -> dict[str, float]:
        """The scores of the whole set, by name."""
        scores = {f"BLEU-{n}": score.corpus for n, score in enumerate(self.bleu, start=1)}
        return scores | {"ROUGE-L": self.rouge_l.corpus, "CIDEr-D": self.cider_d.corpus}


def score_captions(
    candidates: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    frequencies: DocumentFrequencies | None = None,
) -> CaptionScores[ImageId]:
    """Scores captions against what people wrote about the same images.

    Args:
        candidates: the caption of each image.
        references: the references of each image.
        frequencies: for CIDEr-D; without, those of `references`.

    Raises:
        UsageError: the two have different images, or one has none or no references.
    """
    captions = CaptionSet.from_texts(candidates, references)
    return CaptionScores(bleu(captions), rouge_l(captions), cider_d(captions, frequencies))
