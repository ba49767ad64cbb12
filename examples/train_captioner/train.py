"""Train the small captioner that Penstock ships; README.md beside this file has the commands."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch

from examples.train_captioner.experiment import describe, set_up
from examples.train_captioner.stages import (
    FOLDS,
    Clock,
    Recipe,
    pretrain_on_text,
    train_extractors,
    train_on_photos,
)
from examples.train_captioner.vision import CHANNELS
from penstock.export.lightcap.model import LightCap


def main() -> None:
    """Train teachers and student, print and save what they score."""
    options = _options()
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    clock = Clock()
    experiment = set_up(
        options.photos, options.vocab, options.encoder, options.encoder_weights, options.hidden,
        options.layers,
    )  # fmt: skip
    config, seer, train = experiment.config, experiment.seer, experiment.train
    texts, shares = experiment.texts, experiment.shares
    clock.lap(describe(experiment))
    recipe = Recipe(**{entry.name: getattr(options, entry.name) for entry in fields(Recipe)})
    seer.keep_views(train.pixels, options.views)
    train_extractors(seer, train, recipe)
    for parameter in seer.encoder.parameters():
        parameter.requires_grad_(False)
    clock.lap(f"concepts: recall at {config.top_concepts} {experiment.recall():.3f}")
    baselines = {} if options.no_baselines else experiment.baselines()
    clock.lap(f"baselines {json.dumps(baselines)}")

    big = replace(
        config, hidden=options.teacher_hidden, layers=options.teacher_layers,
        ffn=4 * options.teacher_hidden,
    )  # fmt: skip
    teachers: list[list[LightCap]] = [[], []]  # after pre-training, after photos
    dropouts, validated, check = options.dropout, [], experiment.validate
    for number in range(options.teachers):
        model = experiment.new_model(big, dropouts[number % len(dropouts)])
        model = pretrain_on_text(model, [], texts, shares, recipe)
        teachers[0].append(model.eval())
        model, seen = train_on_photos(model, [], seer, train, recipe, check)
        teachers[1].append(model)
        validated.append(max(seen))
        clock.lap(f"teacher {number}: validation {_rounded(seen)}")
    dropout = dropouts[int(np.argmax(validated)) % len(dropouts)] if validated else dropouts[0]
    longer = replace(recipe, text_seconds=options.student * recipe.text_seconds,
                     photo_seconds=options.student * recipe.photo_seconds)  # fmt: skip
    model = experiment.new_model(config, dropout)
    model = pretrain_on_text(model, teachers[0], texts, shares, longer)
    model, seen = train_on_photos(model, teachers[1], seer, train, longer, check)
    model.extractor.load_state_dict(seer.extractors[FOLDS].state_dict())
    clock.lap(f"student: validation {_rounded(seen)}")

    held_out = {f"teacher {n}": experiment.test(t)[0] for n, t in enumerate(teachers[1])}
    held_out["student"], captions = experiment.test(model)
    clock.lap("held out: " + json.dumps({k: round(v["CIDEr-D"], 4) for k, v in held_out.items()}))
    metrics = {
        "recipe": asdict(recipe), "dropout": dropout, "seed": options.seed,
        "baselines": baselines, "held_out": held_out, "validation": seen,
        "train_photos": len(experiment.corpus.train), "device": str(experiment.device),
        "captions": captions,
    }  # fmt: skip
    experiment.save(model, options.out, metrics)
    for text in list(captions.values())[::12]:
        print("  ", text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", choices=list(CHANNELS), default="mobilenet-v2")
    parser.add_argument("--encoder-weights", type=Path)
    parser.add_argument("--views", type=int, default=0, help="augment before, not at each step")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.2, 0.3, 0.4])
    parser.add_argument("--student", type=float, default=1.5, help="times longer than a teacher")
    parser.add_argument("--teachers", type=int, default=3)
    parser.add_argument("--teacher-hidden", type=int, default=384)
    parser.add_argument("--teacher-layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-baselines", action="store_true")
    for entry in fields(Recipe):
        kind = type(entry.default)
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=kind, default=entry.default)
    return parser.parse_args()


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 1) for value in values]


if __name__ == "__main__":
    main()
