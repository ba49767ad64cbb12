"""The graphs of inference: concepts, what a photo's tokens leave behind, one step of a caption."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from penstock.export.lightcap.model import (
    FusionLayer,
    KeysValues,
    LightCap,
    mean_log_probabilities,
)


class Concepts(nn.Module):
    """Concept extraction, as a graph."""

    def __init__(self, model: LightCap) -> None:
        super().__init__()
        self.model = model

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """[1, cells, channels] -> ids and scores [1, top]."""
        return self.model.extractor.top(grid)


class Prefix(nn.Module):
    """Concepts and grid, once for a photo."""

    def __init__(self, model: LightCap) -> None:
        super().__init__()
        self.model = model

    def forward(self, concepts: Tensor, scores: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [layers, batch, heads, top + cells, head width].

        Args:
            concepts, scores: [batch, top]; grid: [batch, cells, channels].
        """
        x = self.model.prefix_tokens(concepts, scores, grid)
        keys, values = [], []
        for index, layer in enumerate(self.model.layers):
            assert isinstance(layer, FusionLayer)
            of_prefix = layer.keys_values(x)
            keys.append(of_prefix.keys)
            values.append(of_prefix.values)
            if index + 1 < len(self.model.layers):
                x, _ = layer(x, [of_prefix], None)
        return torch.stack(keys), torch.stack(values)


class Step(nn.Module):
    """One step: the last token becomes known, and the `[MASK]` behind it is predicted."""

    def __init__(self, model: LightCap) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        parents: Tensor,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities [beams, vocabulary], and all keys and values.

        Args:
            tokens: [beams], the last token of each beam; parents: [beams], the row of the past
                that each continues.
            prefix_keys, prefix_values: of `Prefix`, batch 1, or as many as beams.
            past_keys, past_values: [layers, rows, heads, known, head width].

        Returns:
            Log-probabilities; keys and values [layers, beams, heads, known + 1, head width].
        """
        model = self.model
        past_keys, past_values = past_keys[:, parents], past_values[:, parents]
        known = past_keys.shape[3]
        pair = torch.stack([tokens, torch.full_like(tokens, model.config.mask)], dim=1)
        places = torch.arange(2, device=tokens.device) + known
        x = model.caption_tokens(pair, places)
        # The known token does not look at the [MASK].
        own = torch.tensor([[0.0, -1e4], [0.0, 0.0]], device=tokens.device)
        reach = prefix_keys.shape[3] + known
        mask = torch.cat([torch.zeros(2, reach, device=tokens.device), own], dim=1)
        keys, values = [], []
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, FusionLayer)
            new = layer.keys_values(x)
            memory = [
                KeysValues(prefix_keys[index], prefix_values[index]),
                KeysValues(past_keys[index], past_values[index]),
                new,
            ]
            x, _ = layer(x, memory, mask)
            keys.append(torch.cat([past_keys[index], new.keys[:, :, :1]], dim=2))
            values.append(torch.cat([past_values[index], new.values[:, :, :1]], dim=2))
        log_probabilities = mean_log_probabilities(model.predict(x[:, 1]))
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
    prefix_keys, prefix_values = Prefix(model)(ids, scores, grid)
    step = Step(model)
    batch, config = grid.shape[0], model.config
    shape = (config.layers, batch, config.heads, 0, config.head_width)
    keys = values = torch.zeros(shape, device=grid.device, dtype=prefix_keys.dtype)
    tokens = torch.full((batch,), config.begin, device=grid.device)
    rows = torch.arange(batch, device=grid.device)
    going, total, found = torch.ones_like(tokens), torch.zeros_like(scores[:, 0]), []
    for _ in range(most):
        log_probs, keys, values = step(tokens, rows, prefix_keys, prefix_values, keys, values)
        tokens = torch.multinomial(log_probs.exp(), 1)[:, 0] if sample else log_probs.argmax(-1)
        total = total + going * log_probs.gather(1, tokens[:, None])[:, 0]
        tokens = torch.where(going == 1, tokens, config.end)
        going = going * (tokens != config.end)
        found.append(tokens)
    return torch.stack(found, dim=1), total
