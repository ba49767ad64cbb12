"""LightCap's parts beside slow and plain references; who sees whom in the training pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.export.lightcap.config import LightCapConfig
from penstock.export.lightcap.initial_weights import EMBEDDINGS, LAYER
from penstock.export.lightcap.model import (
    ConceptExtractor,
    LightCap,
    PredictionHead,
    mean_log_probabilities,
)
from penstock.export.lightcap.regions import region_boxes
from tests.export.lightcap.tiny_lightcap import CONFIG, random_captions, random_grid, tiny_model

CLOSE = 1e-9  # in float64: what differs is not rounding


@pytest.fixture
def model() -> LightCap:
    return tiny_model().double()


def grids(batch: int) -> Tensor:
    return random_grid(batch).double()


def seen_by(model: LightCap, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        ids, scores = model.extractor.top(grid)
    return ids, scores, grid


def test_the_default_is_the_papers_size() -> None:
    with torch.device("meta"):
        model = LightCap(LightCapConfig())
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    alignment = sum(n for name, n in sizes.items() if name.startswith("extractor.align"))
    fusion = ("words.", "places.", "kinds.", "embedding_norm.", "layers.")
    bert = sum(n for name, n in sizes.items() if name.startswith(fusion))
    assert (alignment, bert) == (3_147_776, 14_252_592)
    wide, hidden, vocabulary, cells = 2048, 312, 30_522, 49
    modulator = hidden * hidden + hidden + hidden * wide + wide
    head = hidden * hidden + hidden + 2 * hidden + vocabulary  # shares the words' matrix
    grid = wide * hidden + hidden + cells * hidden
    certainty, scale_and_bias = hidden, 2
    others = modulator + 3 * head + grid + certainty + scale_and_bias
    del sizes["extractor.text_embeddings"]  # data
    assert sum(sizes.values()) == alignment + bert + others


def test_a_concept_counts_by_its_best_region(model: LightCap) -> None:
    extractor, grid = model.extractor, grids(2)
    with torch.no_grad():
        seen = extractor(grid)
        for photo in range(2):
            square = grid[photo].view(CONFIG.grid, CONFIG.grid, -1)
            for concept in range(CONFIG.concepts):
                text = extractor.text_embeddings[concept]
                best = -math.inf
                for top, left, side in region_boxes(CONFIG.grid):
                    mean = square[top : top + side, left : left + side].mean(dim=(0, 1))
                    inner = extractor.align_in(mean).clamp(min=0)
                    aligned = extractor.align_out(inner)
                    cosine = float(aligned @ text / (aligned.norm() * text.norm()))
                    best = max(best, cosine)
                wanted = float(extractor.scale) * best + float(extractor.bias)
                assert float(seen[photo, concept]) == pytest.approx(wanted, abs=CLOSE)


def test_the_most_certain_concepts_come_first(model: LightCap) -> None:
    grid = grids(3)
    with torch.no_grad():
        ids, scores = model.extractor.top(grid)
        everything = torch.sigmoid(model.extractor(grid))
    assert ids.shape == scores.shape == (3, CONFIG.top_concepts)
    for photo in range(3):
        order = sorted(range(CONFIG.concepts), key=lambda i: -float(everything[photo, i]))
        assert ids[photo].tolist() == order[: CONFIG.top_concepts]
        assert torch.equal(scores[photo], everything[photo, ids[photo]])


def test_the_extractor_of_a_photo_looks_at_no_other(model: LightCap) -> None:
    extractor: ConceptExtractor = model.extractor
    grid = grids(2)
    with torch.no_grad():
        both = extractor(grid)
        alone = extractor(grid[1:])
    torch.testing.assert_close(both[1:], alone)


def test_modulation_is_a_weight_for_each_channel(model: LightCap) -> None:
    modulator, grid = model.modulator, grids(1)
    concepts = torch.randn(1, CONFIG.top_concepts, CONFIG.hidden).double()
    with torch.no_grad():
        seen = modulator(concepts, grid)
        mean = sum(concepts[0, i] for i in range(CONFIG.top_concepts)) / CONFIG.top_concepts
        inner = [max(0.0, float(x)) for x in modulator.inner(mean)]
        for channel in range(0, CONFIG.channels, 97):
            row, bias = modulator.outer.weight[channel], modulator.outer.bias[channel]
            value = sum(float(a) * b for a, b in zip(row, inner, strict=True)) + float(bias)
            weight = 1 / (1 + math.exp(-value))
            torch.testing.assert_close(
                seen[0, :, channel], weight * grid[0, :, channel], atol=CLOSE, rtol=0
            )


def test_names_of_concepts_are_means_of_their_first_four_pieces(model: LightCap) -> None:
    words = model.words.weight.detach()
    table = model.concept_table().detach()
    torch.testing.assert_close(table[1], words[7])
    torch.testing.assert_close(table[4], (words[16] + words[7]) / 2)
    torch.testing.assert_close(table[6], (words[19] + words[6] + words[8] + words[5]) / 4)


def test_certainty_and_place_reach_the_tokens(model: LightCap) -> None:
    ids, scores, grid = seen_by(model, grids(1))
    with torch.no_grad():
        seen = model.prefix_tokens(ids, scores, grid)
        unsure = model.prefix_tokens(ids, scores / 2, grid)
        without = model.prefix_tokens(ids, scores, None)
    assert seen.shape == (1, CONFIG.top_concepts + CONFIG.cells, CONFIG.hidden)
    torch.testing.assert_close(without, seen[:, : CONFIG.top_concepts])
    assert not torch.allclose(unsure[:, : CONFIG.top_concepts], without)
    flat = torch.ones_like(grid)  # equal cells, that differ by their places
    with torch.no_grad():
        cells = model.prefix_tokens(ids, scores, flat)[0, CONFIG.top_concepts :]
    assert not torch.allclose(cells[0], cells[1])


def bert_layers(model: LightCap) -> Any:
    """The fusion's weights in transformers' BERT."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=CONFIG.vocabulary,
        hidden_size=CONFIG.hidden,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        intermediate_size=CONFIG.ffn,
        max_position_embeddings=CONFIG.positions,
        attn_implementation="eager",
    )
    bert: Any = BertModel(config, add_pooling_layer=False).eval().double()
    ours, state = model.state_dict(), {}
    for name, theirs in EMBEDDINGS.items():
        state[theirs] = ours[name]
    for at in range(CONFIG.layers):
        for name, theirs in LAYER.items():
            for kind in ("weight", "bias"):
                state[f"encoder.layer.{at}.{theirs}.{kind}"] = ours[f"layers.{at}.{name}.{kind}"]
    missing, odd = bert.load_state_dict(state, strict=False)
    assert odd == [] and all("position_ids" in name for name in missing)
    return bert


def reference(model: LightCap, seen: tuple[Tensor, Tensor, Tensor], tokens: list[int]) -> Tensor:
    """Log-probabilities [vocabulary] of what follows the tokens, by transformers' BERT over
    [concepts ; grid ; tokens ; MASK] with an explicit attention mask."""
    bert = bert_layers(model)
    ids, scores, grid = seen
    with torch.no_grad():
        names = model.concept_table()[ids]
        concepts = names + scores[..., None] * model.confidence.weight[:, 0]
        cells = model.grid_in(model.modulator(names, grid)) + model.grid_places
        norm = bert.embeddings.LayerNorm
        prefix = norm(torch.cat([concepts, cells], dim=1) + model.kinds.weight[1])
        caption = bert.embeddings(
            input_ids=torch.tensor([[*tokens, CONFIG.mask]]),
            token_type_ids=torch.zeros(1, len(tokens) + 1, dtype=torch.long),
        )
        x = torch.cat([prefix, caption], dim=1)
        front, total = prefix.shape[1], x.shape[1]
        allowed = torch.zeros(total, total, dtype=torch.bool)
        for row in range(total):
            for column in range(total):
                in_prefix = column < front
                allowed[row, column] = in_prefix or (row >= front and column <= row)
        mask = torch.zeros(1, 1, total, total).masked_fill(~allowed, torch.finfo().min)
        hidden = bert.encoder(x, attention_mask=mask).last_hidden_state[0, -1]
        probabilities = torch.zeros(CONFIG.vocabulary, dtype=torch.float64)
        for head in model.prediction:
            assert isinstance(head, PredictionHead)
            made = head.dense(hidden)
            made = 0.5 * made * (1 + torch.erf(made / math.sqrt(2)))
            made = (made - made.mean()) / torch.sqrt(made.var(unbiased=False) + 1e-12)
            made = made * head.norm.weight + head.norm.bias
            logits = model.words.weight @ made + head.bias
            exp = torch.exp(logits - logits.max())
            probabilities += exp / exp.sum() / len(model.prediction)
    return probabilities.log()


def test_the_training_pass_is_berts_at_every_step(model: LightCap) -> None:
    seen = seen_by(model, grids(1))
    known = random_captions(1, 2, 5)
    with torch.no_grad():
        found = mean_log_probabilities(model(known, *seen).logits).view(2, 5, -1)
    for caption in range(2):
        for step in range(5):
            tokens = known[0, caption, : step + 1].tolist()
            wanted = reference(model, seen, tokens)
            torch.testing.assert_close(found[caption, step], wanted, atol=CLOSE, rtol=0)


def test_captions_of_a_photo_do_not_see_each_other(model: LightCap) -> None:
    seen = seen_by(model, grids(2))
    known = random_captions(2, 3, 6)
    with torch.no_grad():
        together = model(known, *seen).logits.unflatten(2, (3, 6))
        for caption in range(3):
            alone = model(known[:, caption : caption + 1], *seen).logits
            torch.testing.assert_close(together[:, :, caption], alone, atol=CLOSE, rtol=0)
        other = known.clone()
        other[:, 1] = random_captions(2, 1, 6, seed=9)[:, 0]
        changed = model(other, *seen).logits.unflatten(2, (3, 6))
    torch.testing.assert_close(changed[:, :, [0, 2]], together[:, :, [0, 2]], atol=0, rtol=0)
    assert not torch.allclose(changed[:, :, 1], together[:, :, 1], atol=1e-2)


def test_no_step_sees_what_comes_later(model: LightCap) -> None:
    seen = seen_by(model, grids(1))
    known = random_captions(1, 1, 8)
    with torch.no_grad():
        before = model(known, *seen).logits
        for place in range(1, 8):
            other = known.clone()
            other[..., place] = 5 + (other[..., place] - 4) % (CONFIG.vocabulary - 5)
            after = model(other, *seen).logits
            torch.testing.assert_close(after[:, :, :place], before[:, :, :place], atol=0, rtol=0)
            assert not torch.allclose(after[:, :, place], before[:, :, place], atol=1e-4)


def test_photos_of_a_batch_do_not_see_each_other(model: LightCap) -> None:
    ids, scores, grid = seen_by(model, grids(2))
    known = random_captions(2, 2, 4)
    with torch.no_grad():
        both = model(known, ids, scores, grid).logits
        second = model(known[1:], ids[1:], scores[1:], grid[1:]).logits
    torch.testing.assert_close(both[:, 1:], second, atol=CLOSE, rtol=0)


def test_attention_maps_and_hidden_states_for_distillation(model: LightCap) -> None:
    seen = seen_by(model, grids(2))
    with torch.no_grad():
        output = model(random_captions(2, 3, 4), *seen)
    prefix = CONFIG.top_concepts + CONFIG.cells
    assert output.logits.shape == (3, 2, 12, CONFIG.vocabulary)
    assert [h.shape for h in output.hidden] == CONFIG.layers * [(2, 12, CONFIG.hidden)]
    assert [a.shape for a in output.attention] == CONFIG.layers * [(2, 12, prefix + 12)]
    for attention in output.attention:
        assert float(attention.sum(dim=-1).max()) <= 1 + CLOSE  # the rest is the MASK's own
        foreign = attention.view(2, 3, 4, -1)[:, 0, :, prefix + 4 :]
        assert float(foreign.abs().max()) == 0.0


def test_heads_are_averaged_as_probabilities() -> None:
    logits = torch.tensor([[[4.0, 0.0, 1.0]], [[-2.0, 3.0, 0.0]]])
    seen = mean_log_probabilities(logits)
    for token in range(3):
        shares = [math.exp(row[token]) / sum(map(math.exp, row)) for row in logits[:, 0].tolist()]
        assert float(seen[0, token]) == pytest.approx(math.log(sum(shares) / 2), abs=1e-6)
    never = torch.tensor([[[0.0, -1e4]]])
    assert torch.isfinite(mean_log_probabilities(never)).all()
