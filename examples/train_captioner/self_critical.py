"""Self-critical training (Rennie et al. 2017, arXiv 1612.00563): captions are sampled, and made
likelier where they score better in CIDEr-D than the other samples of the same photo.

The mean of the others is the baseline (Luo 2020, arXiv 2003.09971).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from examples.train_captioner.data import BEGIN, END, PAD, Photo, Words
from examples.train_captioner.stages import FOLDS, PhotoSet, Seer, batches, follow, stage
from penstock.export.lightcap.decoding import decode
from penstock.export.lightcap.model import LightCap, mean_log_probabilities
from penstock.export.metrics.caption_set import CaptionPair, CaptionSet
from penstock.export.metrics.cider import cider_d
from penstock.export.metrics.document_frequency import DocumentFrequencies

MOST_TOKENS = 20


class Rewards:
    """CIDEr-D x 100 of captions of training photos; n-grams are as rare as in those."""

    def __init__(self, photos: list[Photo], words: Words) -> None:
        self._words = words
        self._references = [[caption.split() for caption in photo.captions] for photo in photos]
        self._frequencies = DocumentFrequencies.of_references(self._references)

    def __call__(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """[batch], [batch, samples, steps] -> [batch, samples]."""
        pairs = {}
        for index, row in enumerate(rows.tolist()):
            for sample, ids in enumerate(tokens[index].tolist()):
                text = self._words.decode([*ids, END]).split()
                pairs[index, sample] = CaptionPair(text, self._references[row])
        scored = cider_d(CaptionSet(pairs), self._frequencies).images
        return torch.tensor([scored[key] for key in pairs]).view(tokens.shape[:2]).float()


def train_self_critically(
    model: LightCap, seer: Seer, photos: PhotoSet, rewards: Rewards,
    score: Callable[[LightCap], float], *, seconds: float, batch: int, samples: int, lr: float,
    likelihood: float, checks: int,
) -> tuple[LightCap, list[float]]:  # fmt: skip
    """The weights that validated best, the first included.

    Args:
        likelihood: weight of people's captions beside the reward.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    best, seen = copy.deepcopy(model), [score(model.eval())]
    average = copy.deepcopy(model)
    for done in stage(seconds):
        rows = torch.randint(len(photos.pixels), (batch,), device=photos.pixels.device)
        with torch.no_grad():
            grid = seer.training_grid(photos.pixels, rows)
            ids, scores = seer.concepts(grid, rows % FOLDS)
            tokens = _sampled(model.eval(), grid, ids, scores, samples)
        got = rewards(rows, tokens).to(grid.device)
        gain = (got - got.mean(dim=1, keepdim=True)) * samples / max(1, samples - 1)
        begin = torch.full_like(tokens[..., :1], BEGIN)
        known = torch.cat([begin, tokens[..., :-1]], dim=-1)
        counted = (known != END).float()  # the end itself counts, what follows it does not
        model.train()
        log_probs = mean_log_probabilities(model(known, ids, scores, grid).logits)
        chosen = log_probs.gather(-1, tokens.flatten(1)[..., None])[..., 0].view(tokens.shape)
        loss = -(gain[..., None] * chosen * counted).sum() / counted.sum()
        if likelihood:
            captions = photos.captions[rows][:, torch.randperm(5)[:2].to(rows.device)]
            said = mean_log_probabilities(model(captions[..., :-1], ids, scores, grid).logits)
            wanted = captions[..., 1:].flatten(1)
            loss = loss + likelihood * F.nll_loss(said[wanted != PAD], wanted[wanted != PAD])
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - done)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            follow(average, model, 0.9)
        if done >= len(seen) / checks:
            seen.append(score(average.eval()))
            print(f"    reward {float(got.mean()):.3f}, validation {seen[-1]:.1f}", flush=True)
            if seen[-1] == max(seen):
                best = copy.deepcopy(average)
    return best.eval(), seen


def _sampled(model: LightCap, grid: Tensor, ids: Tensor, scores: Tensor, samples: int) -> Tensor:
    """[batch, samples, steps]."""
    found = [
        decode(
            model,
            grid[part].repeat_interleave(samples, 0),
            MOST_TOKENS,
            concepts=(ids[part].repeat_interleave(samples, 0),
                      scores[part].repeat_interleave(samples, 0)),
            sample=True,
        )[0]
        for part in batches(len(grid), 64)
    ]  # fmt: skip
    return torch.cat(found).view(len(grid), samples, -1)
