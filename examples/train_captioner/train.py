"""Train the small captioner that Penstock ships; README.md beside this file has the commands."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
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
from examples.train_captioner.stages import (
    FOLDS,
    Clock,
    PhotoSet,
    Recipe,
    Seer,
    batches,
    pretrain_on_text,
    train_extractors,
    train_on_photos,
)
from examples.train_captioner.vision import CHANNELS, make_encoder
from penstock.export.lightcap.config import LightCapConfig
from penstock.export.lightcap.model import ConceptExtractor, LightCap

SIDE = 256  # of training photos, before cropping
LONGEST = 24  # tokens of a training caption
NEIGHBOURS = 10


def main() -> None:
    """Train teachers and student, print and save what they score."""
    options = _options()
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = Clock()
    corpus = read_corpus(options.photos)
    vocab = options.vocab
    words = Words.of(vocab / "bert-base-uncased-vocab.txt", corpus.texts, least=4)
    lists = [vocab / f"visual_genome_{kind}_vocab.txt" for kind in ("objects", "attributes")]
    concepts = Concepts.of(lists, corpus.train, least=6)
    config = LightCapConfig(
        encoder=options.encoder, channels=CHANNELS[options.encoder], alignment=512, embedding=256,
        concepts=len(concepts.names), modulator=256, vocabulary=len(words.pieces),
        hidden=options.hidden, layers=options.layers, heads=8, ffn=4 * options.hidden,
        positions=64, begin=BEGIN, end=END, mask=MASK,
    )  # fmt: skip
    train = _photo_set(corpus.train, words, concepts, SIDE, device)
    checks = [_pixels(p, config.image_size, device) for p in (corpus.validation, corpus.held_out)]
    texts = torch.stack([_tokens(captions, words) for captions in corpus.texts]).to(device)
    shares = torch.stack([torch.from_numpy(concepts.shares(c)) for c in corpus.texts]).to(device)
    clock.lap(
        f"{len(corpus.train)} photos, {len(corpus.texts)} captioned, {len(words.pieces)} pieces, "
        f"{len(concepts.names)} concepts, on {device}"
    )

    recipe = _recipe(options)
    encoder = make_encoder(options.encoder, options.encoder_weights).to(device).eval()
    extractors = [ConceptExtractor(config).to(device) for _ in range(FOLDS + 1)]
    seer = Seer(encoder, extractors, config.image_size)
    train_extractors(seer, train, recipe)
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    clock.lap(f"concepts: recall at 20 {_recall(seer, checks[0], corpus.validation, concepts):.3f}")
    baselines = {} if options.no_baselines else _baselines(seer, train, corpus, checks)
    clock.lap(f"baselines {json.dumps(baselines)}")

    def score(model: LightCap) -> float:
        return cider(captions_of(model, seer, checks[0], words), corpus.validation)

    big = replace(
        config, hidden=options.teacher_hidden, layers=options.teacher_layers,
        ffn=4 * options.teacher_hidden,
    )  # fmt: skip
    teachers: list[list[LightCap]] = [[], []]  # after pre-training, after photos
    for number in range(options.teachers):
        model = _new(big, options.dropout, concepts, words).to(device)
        model = pretrain_on_text(model, [], texts, shares, recipe)
        teachers[0].append(model.eval())
        model, seen = train_on_photos(model, [], seer, train, recipe, score)
        teachers[1].append(model)
        clock.lap(f"teacher {number}: validation {_rounded(seen)}")
    model = _new(config, options.dropout, concepts, words).to(device)
    model = pretrain_on_text(model, teachers[0], texts, shares, recipe)
    model, seen = train_on_photos(model, teachers[1], seer, train, recipe, score)
    model.extractor.load_state_dict(extractors[FOLDS].state_dict())
    clock.lap(f"student: validation {_rounded(seen)}")
    held_out = {
        f"teacher {n}": scores(captions_of(t, seer, checks[1], words), corpus.held_out)
        for n, t in enumerate(teachers[1])
    }
    texts_made = captions_of(model, seer, checks[1], words)
    held_out["student"] = scores(texts_made, corpus.held_out)
    clock.lap("held out: " + json.dumps({k: round(v["CIDEr-D"], 4) for k, v in held_out.items()}))

    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"lightcap.{k}": v for k, v in model.state_dict().items()}
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, out / "captioner.safetensors")
    config.save(out / "config.json")
    (out / "vocab.txt").write_text("\n".join(words.pieces) + "\n")
    (out / "concepts.txt").write_text("\n".join(concepts.names) + "\n")
    metrics = {
        "recipe": asdict(recipe), "baselines": baselines, "held_out": held_out,
        "validation": seen, "train_photos": len(corpus.train), "device": str(device),
        "captions": {p.path.name: t for p, t in zip(corpus.held_out, texts_made, strict=True)},
    }  # fmt: skip
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    for text in texts_made[:: max(1, len(texts_made) // 12)]:
        print("  ", text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", choices=list(CHANNELS), default="mobilenet-v2")
    parser.add_argument("--encoder-weights", type=Path)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--teachers", type=int, default=3)
    parser.add_argument("--teacher-hidden", type=int, default=512)
    parser.add_argument("--teacher-layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-baselines", action="store_true")
    for entry in fields(Recipe):
        kind = type(entry.default)
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=kind, default=entry.default)
    return parser.parse_args()


def _recipe(options: argparse.Namespace) -> Recipe:
    return Recipe(**{entry.name: getattr(options, entry.name) for entry in fields(Recipe)})


def _new(config: LightCapConfig, dropout: float, concepts: Concepts, words: Words) -> LightCap:
    model = LightCap(config, dropout)
    model.set_concept_names([words.encode(name) for name in concepts.names])
    return model


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
    photos: list[Photo], words: Words, concepts: Concepts, size: int, device: torch.device
) -> PhotoSet:
    shares = [torch.from_numpy(concepts.shares(photo.captions)) for photo in photos]
    captions = [_tokens(photo.captions, words) for photo in photos]
    pixels = _pixels(photos, size, device)
    return PhotoSet(pixels, torch.stack(captions).to(device), torch.stack(shares).to(device))


@torch.no_grad()
def _means(seer: Seer, pixels: Tensor) -> Tensor:
    parts = [seer.grid(pixels[part], training=False) for part in batches(len(pixels), 128)]
    return torch.cat(parts).mean(dim=1)


@torch.no_grad()
def _recall(seer: Seer, pixels: Tensor, photos: list[Photo], concepts: Concepts) -> float:
    """Of what at least two people mention, the share among the concepts kept."""
    ids, _ = seer.concepts(seer.grid(pixels, training=False), None)
    wanted = torch.stack([torch.from_numpy(concepts.shares(p.captions)) for p in photos]) > 0.3
    found = wanted.gather(1, ids.cpu()).sum()
    return float(found / wanted.sum())


def _baselines(
    seer: Seer, train: PhotoSet, corpus: Corpus, checks: list[Tensor]
) -> dict[str, float | str]:
    resized = torch.nn.functional.interpolate(
        train.pixels.float(), (seer.size, seer.size), mode="bilinear", antialias=True
    )
    features = [np.asarray(_means(seer, x).cpu()) for x in (resized, checks[1])]
    text, constant = constant_baseline(corpus.train, corpus.held_out)
    one, many = nearest_baselines(
        corpus.train, corpus.held_out, features[0], features[1], NEIGHBOURS
    )
    return {"constant": constant, "constant text": text, "nearest": one, "consensus": many}


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 1) for value in values]


if __name__ == "__main__":
    main()
