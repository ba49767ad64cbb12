"""Go on with a captioner that `train.py` made: on photos, then self-critically. Also without a GPU.

The concept extractor of the folder stays; those that its training photos are shown with (see
`Seer`) are trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from examples.train_captioner.experiment import describe, load_into, set_up
from examples.train_captioner.self_critical import Rewards, train_self_critically
from examples.train_captioner.stages import (
    FOLDS,
    Clock,
    Recipe,
    train_extractors,
    train_on_photos,
)


def main() -> None:
    """Print and save what it scores before and after."""
    options = _options()
    torch.manual_seed(options.seed)
    clock = Clock()
    experiment = set_up(
        options.photos, options.vocab, "mobilenet-v2", options.encoder_weights, options.hidden,
        options.layers,
    )  # fmt: skip
    clock.lap(describe(experiment))
    seer, train = experiment.seer, experiment.train
    for parameter in seer.encoder.parameters():
        parameter.requires_grad_(False)
    model = experiment.new_model(experiment.config, options.dropout)
    load_into(model, options.start)
    seer.keep_views(train.pixels, options.views)
    clock.lap(f"{options.views} views of each photo")
    recipe = Recipe(
        extractor_seconds=options.extractor_seconds, photo_seconds=options.photo_seconds,
        photo_lr=options.photo_lr, batch=options.batch, average=0.98,
    )  # fmt: skip
    train_extractors(seer, train, recipe)
    seer.extractors[FOLDS].load_state_dict(model.extractor.state_dict())
    clock.lap(f"concepts: recall {experiment.recall():.3f}")
    before = experiment.test(model.eval())[0]
    model, seen = train_on_photos(
        model, [], seer, train, recipe, experiment.validate, checks=options.checks
    )
    clock.lap(f"photos: validation {[round(x, 1) for x in seen]}")
    likely = experiment.test(model)[0]
    clock.lap(f"held out {likely['CIDEr-D']:.4f}, before {before['CIDEr-D']:.4f}")
    experiment.save(model, options.out / "photos", {"held_out": likely, "validation": seen})
    model, critical = train_self_critically(
        model, seer, train, Rewards(experiment.corpus.train, experiment.words),
        experiment.validate, seconds=options.critical_seconds, batch=options.batch,
        samples=options.samples, lr=options.critical_lr, likelihood=options.likelihood,
        checks=options.checks,
    )  # fmt: skip
    clock.lap(f"self-critical: validation {[round(x, 1) for x in critical]}")
    held_out, captions = experiment.test(model)
    clock.lap(f"held out {json.dumps(held_out)}")
    metrics = {
        "options": {k: str(v) for k, v in vars(options).items()}, "before": before,
        "after photos": likely, "held_out": held_out, "validation": seen,
        "validation self-critical": critical, "captions": captions,
    }  # fmt: skip
    experiment.save(model, options.out, metrics)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("photos", "vocab", "start", "out", "encoder-weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--views", type=int, default=8, help="0: augment at each step")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--extractor-seconds", type=float, default=300)
    parser.add_argument("--photo-seconds", type=float, default=1200)
    parser.add_argument("--photo-lr", type=float, default=2e-4)
    parser.add_argument("--critical-seconds", type=float, default=1200)
    parser.add_argument("--critical-lr", type=float, default=3e-5)
    parser.add_argument("--likelihood", type=float, default=0.2)
    parser.add_argument("--checks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
