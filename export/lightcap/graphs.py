"""The four ONNX graphs of a LightCap captioner.

    encoder    pixels [1, 3, S, S]              -> grid [1, cells, channels]
    concepts   grid                             -> concepts, scores [1, top]
    prefix     concepts, scores, grid           -> prefix [1, top + cells, hidden]
    decoder    tokens, parents [B], place [1], prefix [B, P, hidden],
               past_keys, past_values [L, R, H, T, D]
               -> log_probabilities [B, vocabulary], keys, values [L, B, H, T + P + 1, D]

The first three run once for a photo. What concepts and grid leave in each layer is computed in the
decoder's first step and cached with every known token: a later step computes two tokens, the last
one and the `[MASK]`. So the layers' weights stand in one graph only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.export import Dim

from penstock.export.captioner.graphs import to_onnx
from penstock.export.lightcap.decoding import Concepts, Prefix, Step
from penstock.export.lightcap.folder import LightCapFolder

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[MASK]")
NEVER = -1e4  # the bias of what no caption contains


@dataclass(frozen=True)
class LightCapGraphs:
    """Serialized models."""

    encoder: bytes
    concepts: bytes
    prefix: bytes
    decoder: bytes

    def members(self) -> dict[str, bytes]:
        """By name in the captioner file."""
        return {f"{entry.name}.onnx": getattr(self, entry.name) for entry in fields(self)}


def export_graphs(folder: LightCapFolder) -> LightCapGraphs:
    """All four in float32.

    The folder's model is changed first: its heads' biases forbid the tokens that no caption holds,
    so that it and the graphs, which are compared afterwards, rule out the same.
    """
    config = folder.config
    model = folder.model
    _forbid(folder)
    pixels = torch.zeros(1, 3, config.image_size, config.image_size)
    grid = torch.zeros(1, config.cells, config.channels)
    ids = torch.zeros(1, config.top_concepts, dtype=torch.long)
    scores = torch.zeros(1, config.top_concepts)
    prefix = torch.zeros(2, 5, config.hidden)
    past = torch.zeros(config.layers, 3, config.heads, 4, config.head_width)
    tokens, parents = torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    beams, kept = Dim("beams"), {1: Dim("rows"), 3: Dim("known")}
    shapes: tuple[Any, ...] = ({0: beams}, {0: beams}, {}, {0: beams, 1: Dim("new")}, kept, kept)
    place = torch.zeros(1, dtype=torch.long)
    return LightCapGraphs(
        encoder=to_onnx(folder.encoder, (pixels,), ["pixels"], ["grid"], None),
        concepts=to_onnx(Concepts(model), (grid,), ["grid"], ["concepts", "scores"], None),
        prefix=to_onnx(
            Prefix(model),
            (ids, scores, grid),
            ["concepts", "scores", "grid"],
            ["prefix"],
            None,
        ),
        decoder=to_onnx(
            Step(model),
            (tokens, parents, place, prefix, past, past.clone()),  # one tensor would be one input
            ["tokens", "parents", "place", "prefix", "past_keys", "past_values"],
            ["log_probabilities", "keys", "values"],
            shapes,
        ),
    )


def _forbid(folder: LightCapFolder) -> None:
    """No caption has padding, unknown words, a begin or a mask in it."""
    ids = [index for index, piece in enumerate(folder.vocabulary) if piece in SPECIAL]
    with torch.no_grad():
        for head in folder.model.prediction:
            bias = head.bias
            assert isinstance(bias, torch.Tensor)
            bias[ids] = NEVER
