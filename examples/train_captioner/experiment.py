"""What every run begins with and ends in: photos, words, concepts and encoder; files and scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.train_captioner.data import (
    BEGIN,
    END,
    MASK,
    Concepts,
    Corpus,
    Photo,
    Words,
    read_corpus,
    read_pixels,
)
from examples.train_captioner.evaluate import (
    captions_of,
    cider,
    constant_baseline,
    nearest_baselines,
    scores,
)
from examples.train_captioner.stages import FOLDS, PhotoSet, Seer, batches
from examples.train_captioner.vision import CHANNELS, make_encoder
from penstock.export.lightcap.config import LightCapConfig
from penstock.export.lightcap.folder import LightCapFolder, read_folder, write_folder
from penstock.export.lightcap.model import ConceptExtractor, LightCap

SIDE = 256  # of training photos, before cropping
LONGEST = 24  # tokens of a training caption
NEIGHBOURS = 10


@dataclass
class Experiment:
    """Attributes:
    train: photos to learn from; validation, held_out: pixels at the encoder's size.
    texts, shares: captions [photos, 5, length] and concepts [photos, concepts] of all captioned.
    """

    corpus: Corpus
    words: Words
    concepts: Concepts
    config: LightCapConfig
    seer: Seer
    train: PhotoSet
    validation: Tensor
    held_out: Tensor
    texts: Tensor
    shares: Tensor
    device: torch.device

    def new_model(self, config: LightCapConfig, dropout: float) -> LightCap:
        """With fresh weights."""
        model = LightCap(config, dropout)
        model.set_concept_names([self.words.encode(name) for name in self.concepts.names])
        return model.to(self.device)

    def validate(self, model: LightCap) -> float:
        """CIDEr-D x 100 on the photos that training is stopped by."""
        texts = captions_of(model, self.seer, self.validation, self.words)
        return cider(texts, self.corpus.validation)

    def test(self, model: LightCap) -> tuple[dict[str, float], dict[str, str]]:
        """All metrics on held-out photos, and the captions by photo."""
        texts = captions_of(model, self.seer, self.held_out, self.words)
        names = [photo.path.name for photo in self.corpus.held_out]
        return scores(texts, self.corpus.held_out), dict(zip(names, texts, strict=True))

    @torch.no_grad()
    def recall(self) -> float:
        """Of what two people or more mention, the share among the concepts kept."""
        ids, _ = self.seer.concepts(self.seer.grid(self.validation), None)
        shares = [self.concepts.shares(photo.captions) for photo in self.corpus.validation]
        wanted = torch.from_numpy(np.stack(shares)) > 0.3
        return float(wanted.gather(1, ids.cpu()).sum() / wanted.sum())

    def baselines(self) -> dict[str, float | str]:
        """CIDEr-D x 100 on held-out photos of what takes no captioner."""
        resized = torch.nn.functional.interpolate(
            self.train.pixels.float(), self.held_out.shape[-2:], mode="bilinear", antialias=True
        )
        known, asked = (self._means(pixels) for pixels in (resized, self.held_out))
        text, constant = constant_baseline(self.corpus.train, self.corpus.held_out)
        one, many = nearest_baselines(
            self.corpus.train, self.corpus.held_out, known, asked, NEIGHBOURS
        )
        return {"constant": constant, "constant text": text, "nearest": one, "consensus": many}

    def save(self, model: LightCap, out: Path, metrics: dict[str, Any]) -> None:
        """Weights in half precision, configuration, words, concepts, metrics."""
        made = LightCapFolder(
            self.config, self.seer.encoder, model, self.words.pieces, self.concepts.names
        )
        write_folder(made, out)
        (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")

    @torch.no_grad()
    def _means(self, pixels: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        parts = [self.seer.grid(pixels[part]) for part in batches(len(pixels), 128)]
        return np.asarray(torch.cat(parts).mean(dim=1).cpu())


def set_up(
    photos: Path, vocab: Path, encoder: str, encoder_weights: Path | None, hidden: int, layers: int
) -> Experiment:
    """Read everything; on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = read_corpus(photos)
    words = Words.of(vocab / "bert-base-uncased-vocab.txt", corpus.texts, least=4)
    lists = [vocab / f"visual_genome_{kind}_vocab.txt" for kind in ("objects", "attributes")]
    concepts = Concepts.of(lists, corpus.train, least=6)
    config = LightCapConfig(
        encoder=encoder, channels=CHANNELS[encoder], alignment=512, embedding=256,
        concepts=len(concepts.names), modulator=256, vocabulary=len(words.pieces), hidden=hidden,
        layers=layers, heads=8, ffn=4 * hidden, positions=64, begin=BEGIN, end=END, mask=MASK,
    )  # fmt: skip
    backbone = make_encoder(encoder, encoder_weights).to(device).eval()
    extractors = [ConceptExtractor(config).to(device) for _ in range(FOLDS + 1)]
    shares = torch.from_numpy(np.stack([concepts.shares(c) for c in corpus.texts]))
    return Experiment(
        corpus=corpus,
        words=words,
        concepts=concepts,
        config=config,
        seer=Seer(backbone, extractors, config.image_size),
        train=_photo_set(corpus.train, words, concepts, device),
        validation=_pixels(corpus.validation, config.image_size, device),
        held_out=_pixels(corpus.held_out, config.image_size, device),
        texts=torch.stack([_tokens(captions, words) for captions in corpus.texts]).to(device),
        shares=shares.to(device),
        device=device,
    )


def load_into(model: LightCap, folder: Path) -> None:
    """Weights that `save` wrote."""
    model.load_state_dict(read_folder(folder).model.state_dict())


def describe(experiment: Experiment) -> str:
    """One line."""
    return (
        f"{len(experiment.corpus.train)} photos, {len(experiment.corpus.texts)} captioned, "
        f"{len(experiment.words.pieces)} pieces, {len(experiment.concepts.names)} concepts, "
        f"on {experiment.device}"
    )


def _tokens(captions: list[str], words: Words) -> Tensor:
    """[5, LONGEST + 2]: begin, tokens, end, padding."""
    made = torch.zeros(5, LONGEST + 2, dtype=torch.long)
    for row in range(5):
        ids = words.encode(captions[row % len(captions)])[:LONGEST]
        made[row, : len(ids) + 2] = torch.tensor([BEGIN, *ids, END])
    return made


def _pixels(photos: list[Photo], size: int, device: torch.device) -> Tensor:
    return torch.from_numpy(read_pixels(photos, size)).to(device)


def _photo_set(
    photos: list[Photo], words: Words, concepts: Concepts, device: torch.device
) -> PhotoSet:
    shares = torch.from_numpy(np.stack([concepts.shares(photo.captions) for photo in photos]))
    captions = torch.stack([_tokens(photo.captions, words) for photo in photos])
    return PhotoSet(_pixels(photos, SIDE, device), captions.to(device), shares.to(device))
