"""CIDEr-D on photos, of a model in torch and of the baselines that it has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.train_captioner.data import END, Photo, Words
from examples.train_captioner.stages import Seer, batches
from penstock.export.lightcap.decoding import decode
from penstock.export.lightcap.model import LightCap
from penstock.export.metrics.caption_scores import score_captions

MOST_TOKENS = 24


@torch.no_grad()
def captions_of(model: LightCap, seer: Seer, pixels: Tensor, words: Words) -> list[str]:
    """Greedy captions of photos at the encoder's size."""
    texts = []
    for part in batches(len(pixels), 128):
        grid = seer.grid(pixels[part])
        tokens, _ = decode(model, grid, MOST_TOKENS, concepts=seer.concepts(grid, None))
        texts += [words.decode([*row, END]) for row in tokens.tolist()]
    return texts


def cider(texts: Sequence[str], photos: Sequence[Photo]) -> float:
    """CIDEr-D times 100, as it is quoted."""
    return 100 * scores(texts, photos)["CIDEr-D"]


def scores(texts: Sequence[str], photos: Sequence[Photo]) -> dict[str, float]:
    """All metrics of captions, one for each photo."""
    names = [photo.path.name for photo in photos]
    references = {photo.path.name: photo.captions for photo in photos}
    return score_captions(dict(zip(names, texts, strict=True)), references).corpus()


def constant_baseline(train: Sequence[Photo], photos: Sequence[Photo]) -> tuple[str, float]:
    """The training caption that would score best on all photos of `photos`: a bound of constants,
    since it is chosen on the photos that it is scored on."""
    candidates = sorted({caption for photo in train for caption in photo.captions})
    short = [text for text in candidates if 4 <= len(text.split()) <= 12]
    words = [set(text.split()) for photo in photos for text in photo.captions]
    common = sorted(short, key=lambda text: -sum(len(set(text.split()) & w) for w in words))[:40]
    scored = [(cider([text] * len(photos), photos), text) for text in common]
    best = max(scored)
    return best[1], best[0]


def nearest_baselines(
    train: Sequence[Photo],
    photos: Sequence[Photo],
    train_features: NDArray[np.float32],
    features: NDArray[np.float32],
    neighbours: int,
) -> tuple[float, float]:
    """CIDEr-D of the nearest training photo's caption, and of the consensus of several's.

    Features are means over the grid; nearest is by cosine. Of a photo's captions, and of several
    photos', the one is given that is most like the others (Devlin et al. 2015, arXiv 1505.04467).
    """
    similarity = _unit(features) @ _unit(train_features).T
    order = np.argsort(-similarity, axis=1)
    one = [_consensus(train[row[0]].captions) for row in order]
    many = [
        _consensus([c for index in row[:neighbours] for c in train[index].captions])
        for row in order
    ]
    return cider(one, photos), cider(many, photos)


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    normed: NDArray[np.float32] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return normed


def _consensus(captions: list[str]) -> str:
    bags = [_ngrams(caption) for caption in captions]

    def likeness(index: int) -> float:
        mine = bags[index]
        return sum(
            len(mine & other) / max(1, len(mine | other))
            for place, other in enumerate(bags)
            if place != index
        )

    return captions[max(range(len(captions)), key=likeness)]


def _ngrams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + n]) for n in (1, 2) for i in range(len(words) - n + 1)}
