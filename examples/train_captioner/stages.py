"""The stages of training: concepts, pre-training on text, captions, each with distillation.

Sequential distillation (LightCap, section 3.4): a student learns from its teachers in pre-training
and again on photos. Ensemble distillation: each of its parallel heads learns from its own teacher.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.train_captioner.data import PAD, UNKNOWN
from examples.train_captioner.vision import augment, normalise
from penstock.export.lightcap.model import ConceptExtractor, FusionOutput, LightCap

FOLDS = 5


@dataclass
class PhotoSet:
    """Photos on the device.

    Attributes:
        pixels: uint8 [photos, 3, side, side].
        captions: [photos, 5, length], begin ... end, padded.
        shares: [photos, concepts], the share of captions that mention each.
    """

    pixels: Tensor
    captions: Tensor
    shares: Tensor


@dataclass
class Recipe:
    """What a run may be told. Stages are seconds long, and rates fall over them."""

    extractor_seconds: float = 10.0
    text_seconds: float = 40.0
    photo_seconds: float = 40.0
    batch: int = 96  # photos, each with all of its captions
    extractor_lr: float = 1e-3
    text_lr: float = 6e-4
    photo_lr: float = 4e-4
    encoder_lr: float = 0.0
    weight_decay: float = 0.05
    smoothing: float = 0.1
    soft: float = 2.0  # weight of the teacher's token probabilities
    representation: float = 0.5  # of hidden states and attention maps
    average: float = 0.99  # of weights, over steps


def stage(seconds: float) -> Iterator[float]:
    """What share of the stage is over, step by step."""
    start = monotonic()
    done = 0.0 if seconds > 0 else 1.0
    while done < 1:
        yield done
        done = (monotonic() - start) / seconds


class Seer:
    """The encoder and the extractors: photos in, grid and concepts out.

    A captioner that trains on concepts which the extractor found on its own training photos would
    trust them too much. So for training photos the concepts come from an extractor that has not
    seen them: one of `FOLDS`, each trained on the rest.
    """

    def __init__(self, encoder: nn.Module, extractors: list[ConceptExtractor], size: int) -> None:
        self.encoder, self.extractors, self.size = encoder, extractors, size
        self._views: list[Tensor] = []

    def grid(self, pixels: Tensor) -> Tensor:
        """Features [batch, cells, channels] of photos as they are."""
        return self._encode(normalise(pixels))

    def training_grid(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Features of augmented photos, of all of `pixels` those in `rows`."""
        if not self._views:
            return self._encode(augment(pixels[rows], self.size))
        views = torch.randint(len(self._views), rows.shape).tolist()
        found = [self._views[v][row] for v, row in zip(views, rows.tolist(), strict=True)]
        return torch.stack(found).float().to(pixels.device)

    @torch.no_grad()
    def keep_views(self, pixels: Tensor, count: int) -> None:
        """Augment and encode each photo `count` times now: for machines where that is slow."""
        for _ in range(count):
            parts = batches(len(pixels), 32)
            made = [self._encode(augment(pixels[part], self.size)).half() for part in parts]
            self._views.append(torch.cat(made))

    def _encode(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            grid: Tensor = self.encoder(x)
        return grid.float()

    @torch.no_grad()
    def concepts(self, grid: Tensor, folds: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ids and scores [batch, top]; `folds`: of each photo, None for photos not trained on."""
        if folds is None:
            return self.extractors[FOLDS].eval().top(grid)
        found = [extractor.eval().top(grid) for extractor in self.extractors[:FOLDS]]
        rows = torch.arange(len(grid), device=grid.device)
        ids = torch.stack([f[0] for f in found])[folds, rows]
        return ids, torch.stack([f[1] for f in found])[folds, rows]


def train_extractors(seer: Seer, photos: PhotoSet, recipe: Recipe) -> None:
    """All folds and the one of all photos at once, from the same features."""
    extractors = nn.ModuleList(seer.extractors)
    groups: list[dict[str, Any]] = [
        {"params": list(extractors.parameters()), "lr": recipe.extractor_lr}
    ]
    tuned = recipe.encoder_lr > 0
    if tuned:
        groups.append({"params": list(seer.encoder.parameters()), "lr": recipe.encoder_lr})
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    peaks = [group["lr"] for group in groups]
    for done in stage(recipe.extractor_seconds):
        rows = torch.randint(len(photos.pixels), (recipe.batch,), device=photos.pixels.device)
        with torch.set_grad_enabled(tuned):
            seer.encoder.train(tuned)
            grid = seer.training_grid(photos.pixels, rows)
        extractors.train()
        total = torch.zeros((), device=grid.device)
        for fold, extractor in enumerate(seer.extractors):
            mine = rows % FOLDS != fold if fold < FOLDS else rows >= 0
            logits = extractor(grid)
            loss = F.binary_cross_entropy_with_logits(logits, photos.shares[rows], reduction="none")
            weight = 1 + 4 * photos.shares[rows]
            total = total + ((loss * weight).sum(-1) * mine).sum() / mine.sum().clamp(min=1)
        _update(optimizer, total / len(seer.extractors), done, peaks)
    extractors.eval()
    seer.encoder.eval()


def pretrain_on_text(
    model: LightCap,
    teachers: list[LightCap],
    texts: Tensor,
    shares: Tensor,
    recipe: Recipe,
) -> LightCap:
    """Captions from concepts alone: those that people's captions of the photo mention, and noise.

    Args:
        texts: [photos, 5, length]; shares: [photos, concepts].
    """
    average = copy.deepcopy(model)
    optimizer = _optimizer(model, recipe.text_lr, recipe.weight_decay)
    bridge = _bridge(model, teachers, texts.device)
    if bridge is not None:
        optimizer.add_param_group({"params": list(bridge.parameters())})
    peaks = [recipe.text_lr] * len(optimizer.param_groups)
    frequent = shares.mean(dim=0)
    for done in stage(recipe.text_seconds):
        rows = torch.randint(len(texts), (recipe.batch,), device=texts.device)
        captions = texts[rows]
        ids, scores = _noisy_concepts(shares[rows], frequent, model.config.top_concepts)
        loss = _loss(model, teachers, bridge, captions, ids, scores, None, recipe)
        _update(optimizer, loss, done, peaks)
        follow(average, model, recipe.average)
    return average


def train_on_photos(
    model: LightCap,
    teachers: list[LightCap],
    seer: Seer,
    photos: PhotoSet,
    recipe: Recipe,
    score: Callable[[LightCap], float],
    checks: int = 8,
) -> tuple[LightCap, list[float]]:
    """Captions from photos. The weights kept are the average's that validated best."""
    average = copy.deepcopy(model)
    optimizer = _optimizer(model, recipe.photo_lr, recipe.weight_decay)
    bridge = _bridge(model, teachers, photos.pixels.device)
    if bridge is not None:
        optimizer.add_param_group({"params": list(bridge.parameters())})
    peaks = [recipe.photo_lr] * len(optimizer.param_groups)
    best, best_score = copy.deepcopy(model), -1.0
    scores_seen: list[float] = []
    for step, done in enumerate(stage(recipe.photo_seconds)):
        rows = torch.randint(len(photos.pixels), (recipe.batch,), device=photos.pixels.device)
        with torch.no_grad():
            grid = seer.training_grid(photos.pixels, rows)
            ids, scores = seer.concepts(grid, rows % FOLDS)
        loss = _loss(model, teachers, bridge, photos.captions[rows], ids, scores, grid, recipe)
        _update(optimizer, loss, done, peaks)
        follow(average, model, recipe.average if step > 100 else 0.9)
        if done >= (len(scores_seen) + 1) / checks:
            scores_seen.append(score(average.eval()))
            if scores_seen[-1] > best_score:
                best, best_score = copy.deepcopy(average), scores_seen[-1]
    if not scores_seen:
        return average.eval(), [score(average.eval())]
    print(f"    {step + 1} steps", flush=True)
    return best.eval(), scores_seen


def _loss(
    model: LightCap,
    teachers: list[LightCap],
    bridge: nn.Linear | None,
    captions: Tensor,
    ids: Tensor,
    scores: Tensor,
    grid: Tensor | None,
    recipe: Recipe,
) -> Tensor:
    known, wanted = captions[..., :-1], captions[..., 1:].flatten(1)
    counted = (wanted != PAD) & (wanted != UNKNOWN)
    model.train()
    with torch.autocast(known.device.type, torch.bfloat16, enabled=known.is_cuda):
        output = model(known, ids, scores, grid)
        with torch.no_grad():
            taught = [teacher(known, ids, scores, grid) for teacher in teachers]
    loss = torch.zeros((), device=known.device)
    for head, logits in enumerate(output.logits.float()):
        loss = loss + F.cross_entropy(
            logits[counted], wanted[counted], label_smoothing=recipe.smoothing
        )
        if taught:
            theirs = taught[head % len(taught)].logits.float().mean(dim=0)[counted]
            loss = loss + recipe.soft * F.kl_div(
                torch.log_softmax(logits[counted], -1), torch.softmax(theirs, -1),
                reduction="batchmean",
            )  # fmt: skip
    loss = loss / len(output.logits)
    if taught and bridge is not None:
        loss = loss + recipe.representation * _representation(output, taught[0], bridge, counted)
    return loss


def _representation(
    ours: FusionOutput, theirs: FusionOutput, bridge: nn.Linear, counted: Tensor
) -> Tensor:
    """Hidden states of the last layers alike through a linear map, and their attention maps."""
    mapped = bridge(ours.hidden[-1].float())[counted]
    hidden = F.mse_loss(mapped, theirs.hidden[-1].float()[counted])
    log_ours = ours.attention[-1].float()[counted].clamp_min(1e-6).log()
    maps = F.kl_div(log_ours, theirs.attention[-1].float()[counted], reduction="batchmean")
    return hidden + maps


def _bridge(model: LightCap, teachers: list[LightCap], device: torch.device) -> nn.Linear | None:
    if not teachers:
        return None
    return nn.Linear(model.config.hidden, teachers[0].config.hidden).to(device)


def _noisy_concepts(shares: Tensor, frequent: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """As an extractor would find them: some missed, some that are not there."""
    noise = torch.rand_like(shares)
    seen = shares.clamp(max=1) * torch.empty_like(shares).uniform_(0.3, 1.0) * (noise > 0.3)
    wrong = torch.rand_like(shares).pow(4) * (frequent / frequent.max()).sqrt() * 0.5
    scores, ids = torch.topk(torch.maximum(seen, wrong), top, dim=-1)
    return ids, scores


def _optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices}, {"params": others, "weight_decay": 0.0}
    ]  # fmt: skip
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))


def _update(
    optimizer: torch.optim.Optimizer, loss: Tensor, done: float, peaks: list[float]
) -> None:
    """One step; the rate rises for a tenth of the stage and falls along a cosine."""
    at = (done + 1e-3) / 0.1 if done < 0.1 else 0.5 + 0.5 * math.cos(math.pi * done)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * min(at, 1.0)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)
    optimizer.step()


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move the average towards the model, which keeps `share` of itself."""
    ours: list[Tensor] = [*average.parameters()]
    theirs: list[Tensor] = [*model.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - share)


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows."""
    for start in range(0, count, size):
        yield slice(start, start + size)


class Clock:
    """Prints what each stage took."""

    def __init__(self) -> None:
        self._last = monotonic()

    def lap(self, text: str) -> None:
        """Print the text and the seconds since the last lap."""
        now = monotonic()
        print(f"{text} [{now - self._last:.1f} s]", flush=True)
        self._last = now
