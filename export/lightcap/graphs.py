"""The four ONNX graphs of a LightCap captioner.

    encoder    pixels [1, 3, S, S]                         -> grid [1, cells, channels]
    concepts   grid                                        -> concepts, scores [1, top]
    prefix     concepts, scores, grid   -> prefix_keys, prefix_values [L, 1, H, top + cells, D]
    decoder    tokens, parents [B], prefix_*, past_keys, past_values [L, R, H, T, D]
               -> log_probabilities [B, vocabulary], keys, values [L, B, H, T + 1, D]

The first three run once for a photo. What concepts and grid leave in each layer is cached, and so
is every known token: a step of the decoder computes two tokens, the last one and the `[MASK]`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

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
    """All four in float32."""
    config = folder.config
    model = folder.model
    _forbid(folder)
    pixels = torch.zeros(1, 3, config.image_size, config.image_size)
    grid = torch.zeros(1, config.cells, config.channels)
    ids = torch.zeros(1, config.top_concepts, dtype=torch.long)
    scores = torch.zeros(1, config.top_concepts)
    shape = (config.layers, 1, config.heads, config.top_concepts + config.cells, config.head_width)
    prefix = torch.zeros(shape)
    past = torch.zeros(config.layers, 3, config.heads, 4, config.head_width)
    tokens, parents = torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    beams, rows, known = Dim("beams"), Dim("rows"), Dim("known")
    kept = {1: rows, 3: known}
    shapes = ({0: beams}, {0: beams}, {}, {}, kept, kept)
    return LightCapGraphs(
        encoder=to_onnx(folder.encoder, (pixels,), ["pixels"], ["grid"], None),
        concepts=to_onnx(Concepts(model), (grid,), ["grid"], ["concepts", "scores"], None),
        prefix=to_onnx(
            Prefix(model),
            (ids, scores, grid),
            ["concepts", "scores", "grid"],
            ["prefix_keys", "prefix_values"],
            None,
        ),
        decoder=to_onnx(
            Step(model),
            (tokens, parents, prefix, prefix, past, past),
            ["tokens", "parents", "prefix_keys", "prefix_values", "past_keys", "past_values"],
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
