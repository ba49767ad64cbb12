"""Step by step with a cache, beside all steps at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from penstock.export.lightcap.decoding import Concepts, Prefix, Step, decode
from penstock.export.lightcap.model import LightCap, mean_log_probabilities
from tests.export.lightcap.tiny_lightcap import CONFIG, random_captions, random_grid, tiny_model

CLOSE = 1e-9  # in float64: what differs is not rounding
STEPS = 9


def grids(batch: int, seed: int = 1) -> Tensor:
    return random_grid(batch, seed).double()


@pytest.fixture(scope="module")
def model() -> LightCap:
    return tiny_model().double()


def all_at_once(model: LightCap, known: Tensor, grid: Tensor) -> Tensor:
    """Log-probabilities [batch, captions, steps, vocabulary] of the training pass."""
    with torch.no_grad():
        logits = model(known, *model.extractor.top(grid), grid).logits
        batch, captions, steps = known.shape
        return mean_log_probabilities(logits).view(batch, captions, steps, -1)


class Stepper:
    """Steps over rows that all see the same photo."""

    def __init__(self, model: LightCap, grid: Tensor) -> None:
        with torch.no_grad():
            self.prefix = Prefix(model)(*model.extractor.top(grid), grid)
        self.step = Step(model)
        shape = (CONFIG.layers, 1, CONFIG.heads, 0, CONFIG.head_width)
        self.keys = self.values = torch.zeros(shape, dtype=grid.dtype)
        self.place = 0

    @torch.no_grad()
    def __call__(self, tokens: list[int], parents: list[int]) -> Tensor:
        new = self.prefix.shape[1] if self.place == 0 else 0
        prefix = self.prefix[:, :new].expand(len(tokens), -1, -1)
        made, self.keys, self.values = self.step(
            torch.tensor(tokens), torch.tensor(parents), torch.tensor([self.place]), prefix,
            self.keys, self.values,
        )  # fmt: skip
        self.place += 1
        found: Tensor = made
        return found


def test_steps_with_a_cache_equal_the_training_pass_at_every_place(model: LightCap) -> None:
    grid, known = grids(2), random_captions(2, 3, STEPS)
    wanted = all_at_once(model, known, grid)
    for photo in range(2):
        for caption in range(3):
            step = Stepper(model, grid[photo : photo + 1])
            for place, token in enumerate(known[photo, caption].tolist()):
                seen = step([token], [0])[0]
                torch.testing.assert_close(seen, wanted[photo, caption, place], atol=CLOSE, rtol=0)


def test_beams_continue_the_rows_that_they_name(model: LightCap) -> None:
    grid = grids(1)
    step = Stepper(model, grid)
    step([CONFIG.begin], [0])
    step([5, 6, 7], [0, 0, 0])
    step([8, 9, 10, 11], [2, 0, 2, 1])
    seen = step([12, 13], [3, 0])
    captions = torch.tensor([[[CONFIG.begin, 6, 11, 12], [CONFIG.begin, 7, 8, 13]]])
    wanted = all_at_once(model, captions, grid)[0, :, -1]
    torch.testing.assert_close(seen, wanted, atol=CLOSE, rtol=0)


def test_the_photo_never_sees_the_caption(model: LightCap) -> None:
    """What concepts and grid leave in the cache is the same, whatever is said."""
    grid, front = grids(1), CONFIG.top_concepts + CONFIG.cells
    caches = []
    for said in ([CONFIG.begin, 5, 6], [9, 10, 11]):
        step = Stepper(model, grid)
        for token in said:
            step([token], [0])
        assert step.keys.shape[3] == front + len(said)
        caches.append((step.keys, step.values))
    for one, other in zip(*caches, strict=True):
        assert torch.equal(one[:, :, :, :front], other[:, :, :, :front])
        assert not torch.allclose(one[:, :, :, front:], other[:, :, :, front:])


def test_the_mask_leaves_nothing_in_the_cache(model: LightCap) -> None:
    grid = grids(1)
    step = Stepper(model, grid)
    step([CONFIG.begin], [0])
    kept = step.keys.clone()
    step([7], [0])
    assert torch.equal(step.keys[:, :, :, : kept.shape[3]], kept)
    assert step.keys.shape[3] == kept.shape[3] + 1


def test_graphs_compute_what_the_model_does(model: LightCap) -> None:
    grid = grids(1)
    with torch.no_grad():
        ids, scores = Concepts(model)(grid)
        wanted_ids, wanted_scores = model.extractor.top(grid)
        prefix = Prefix(model)(ids, scores, grid)
        wanted = model.prefix_tokens(ids, scores, grid)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(scores, wanted_scores, atol=CLOSE, rtol=0)
    torch.testing.assert_close(prefix, wanted, atol=CLOSE, rtol=0)


def greedy(model: LightCap, grid: Tensor, most: int) -> tuple[list[int], float]:
    """By the training pass, everything anew for each token."""
    tokens, total = [CONFIG.begin], 0.0
    for _ in range(most):
        row = all_at_once(model, torch.tensor([[tokens]]), grid)[0, 0, -1]
        tokens.append(int(row.argmax()))
        total += float(row.max())
        if tokens[-1] == CONFIG.end:
            break
    return tokens[1:], total


def test_decode_is_greedy_and_pads_with_the_end(model: LightCap) -> None:
    grid = torch.cat([grids(4, seed=5), 3 * grids(4, seed=6)])
    model = copy.deepcopy(model)
    with torch.no_grad():  # captions end sooner or later, as the photo wants
        for head in model.prediction:
            bias = head.bias
            assert isinstance(bias, Tensor)
            bias[CONFIG.end] += 1.0
    tokens, sums = decode(model, grid, STEPS)
    assert tokens.shape == (8, STEPS)
    lengths = set()
    for photo in range(8):
        wanted, total = greedy(model, grid[photo : photo + 1], STEPS)
        padded = wanted + [CONFIG.end] * (STEPS - len(wanted))
        assert tokens[photo].tolist() == padded
        assert float(sums[photo]) == pytest.approx(total, abs=CLOSE)
        lengths.add(len(wanted))
    assert len(lengths) > 1, "captions that are all as long show little"


def test_decode_takes_concepts(model: LightCap) -> None:
    grid = grids(1)
    ids, scores = model.extractor.top(grid)
    own = decode(model, grid, STEPS)
    same = decode(model, grid, STEPS, concepts=(ids.detach(), scores.detach()))
    assert torch.equal(own[0], same[0])
    other = (ids.detach() + 1) % CONFIG.concepts
    assert float(decode(model, grid, STEPS, concepts=(other, scores.detach()))[1]) != float(own[1])


def test_samples_follow_the_probabilities(model: LightCap) -> None:
    torch.manual_seed(0)
    count = 4000
    grid = grids(1).expand(count, -1, -1)
    ids, scores = (x.detach().expand(count, -1) for x in model.extractor.top(grid[:1]))
    tokens, sums = decode(model, grid, 1, concepts=(ids, scores), sample=True)
    begin = torch.full((1, 1, 1), CONFIG.begin)
    wanted = all_at_once(model, begin, grid[:1])[0, 0, 0]
    seen = torch.bincount(tokens[:, 0], minlength=CONFIG.vocabulary) / count
    assert float((seen - wanted.exp()).abs().max()) < 4 * 0.5 / count**0.5
    torch.testing.assert_close(sums, wanted[tokens[:, 0]], atol=CLOSE, rtol=0)
