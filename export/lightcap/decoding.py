"""The graphs of inference: concepts, the tokens of a photo, one step of a caption."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penstock.export.lightcap.model import (
    FusionLayer,
    KeysValues,
    LightCap,
    mean_log_probabilities,
)


class Concepts(nn.Module):
    """Concept extraction, with the texts' embeddings computed beforehand."""

    texts: Tensor

    def __init__(self, model: LightCap) -> None:
        super().__init__()
        self.extractor = model.extractor
        texts = F.normalize(model.extractor.text_embeddings.detach(), dim=-1)
        self.register_buffer("texts", texts.T.contiguous())

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """[1, cells, channels] -> ids and scores [1, top]; as `ConceptExtractor.top`."""
        extractor = self.extractor
        similarity = (extractor.align(grid) @ self.texts).amax(dim=1)
        shown = torch.sigmoid(extractor.scale * similarity + extractor.bias)
        scores, ids = torch.topk(shown, extractor.config.top_concepts, dim=-1)
        return ids, scores


class Prefix(nn.Module):
    """Concepts and grid as tokens, with the names' embeddings computed beforehand."""

    table: Tensor

    def __init__(self, model: LightCap) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("table", model.concept_table().detach())

    def forward(self, concepts: Tensor, scores: Tensor, grid: Tensor) -> Tensor:
        """[batch, top], [batch, top], [batch, cells, channels] -> [batch, top + cells, hidden]."""
        return self.model.prefix_tokens(concepts, scores, grid, self.table)


class Step(nn.Module):
    """One step: the last token becomes known, and the `[MASK]` behind it is predicted.

    In the first step the prefix goes in front of both; its keys and values are kept with those of
    the known tokens, and later steps have an empty one.
    """

    def __init__(self, model: LightCap) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        parents: Tensor,
        place: Tensor,
        prefix: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities [beams, vocabulary], and all keys and values.

        Args:
            tokens: [beams], the last token of each beam; parents: [beams], the row of the past
                that each continues.
            place: [1], of the tokens in their captions, from 0.
            prefix: [beams, P, hidden]; P is 0 but in the first step.
            past_keys, past_values: [layers, rows, heads, known, head width].

        Returns:
            Log-probabilities; keys and values [layers, beams, heads, known + P + 1, head width].
        """
        model, device = self.model, tokens.device
        past_keys = past_keys.index_select(1, parents)
        past_values = past_values.index_select(1, parents)
        known, new = past_keys.shape[3], prefix.shape[1]
        pair = torch.stack([tokens, torch.full_like(tokens, model.config.mask)], dim=1)
        places = torch.arange(2, device=device) + place
        x = torch.cat([prefix, model.caption_tokens(pair, places)], dim=1)
        # The prefix sees itself, the token all but the [MASK], the [MASK] everything.
        row = torch.arange(new + 2, device=device)[:, None]
        column = torch.arange(known + new + 2, device=device)[None] - known
        hidden = (column > row) & (column >= new)
        mask = hidden.to(x.dtype) * -1e4
        keys, values = [], []
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, FusionLayer)
            own = layer.keys_values(x)
            past = KeysValues(past_keys[index], past_values[index])
            x, _ = layer(x, [past, own], mask)
            keys.append(torch.cat([past.keys, own.keys[:, :, :-1]], dim=2))
            values.append(torch.cat([past.values, own.values[:, :, :-1]], dim=2))
        log_probabilities = mean_log_probabilities(model.predict(x[:, -1]))
        return log_probabilities, torch.stack(keys), torch.stack(values)


@torch.no_grad()
def decode(
    model: LightCap,
    grid: Tensor,
    most: int,
    *,
    concepts: tuple[Tensor, Tensor] | None = None,
    sample: bool = False,
) -> tuple[Tensor, Tensor]:
    """Captions of a batch of photos, all at once: greedy, or sampled for self-critical training.

    Args:
        grid: [batch, cells, channels].
        concepts: ids and scores; None: the extractor's.

    Returns:
        Tokens [batch, most], `end` from the end on; sums of log-probabilities [batch].
    """
    ids, scores = model.extractor.top(grid) if concepts is None else concepts
    prefix, step = Prefix(model)(ids, scores, grid), Step(model)
    batch, config = grid.shape[0], model.config
    shape = (config.layers, batch, config.heads, 0, config.head_width)
    keys = values = torch.zeros(shape, device=grid.device, dtype=prefix.dtype)
    tokens = torch.full((batch,), config.begin, device=grid.device)
    rows = torch.arange(batch, device=grid.device)
    going, total, found = torch.ones_like(tokens), torch.zeros_like(scores[:, 0]), []
    for index in range(most):
        place = torch.tensor([index], device=grid.device)
        log_probs, keys, values = step(tokens, rows, place, prefix, keys, values)
        prefix = prefix[:, :0]
        tokens = torch.multinomial(log_probs.exp(), 1)[:, 0] if sample else log_probs.argmax(-1)
        total = total + going * log_probs.gather(1, tokens[:, None])[:, 0]
        tokens = torch.where(going == 1, tokens, config.end)
        going = going * (tokens != config.end)
        found.append(tokens)
    return torch.stack(found, dim=1), total
