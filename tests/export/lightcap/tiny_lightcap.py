"""A LightCap of a few thousand weights, all random, none 0: a part that is forgotten shows."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penstock.export.lightcap.config import LightCapConfig
from penstock.export.lightcap.folder import LightCapFolder, new_encoder
from penstock.export.lightcap.graphs import LightCapGraphs, export_graphs
from penstock.export.lightcap.model import FusionLayer, LightCap, PredictionHead
from tests.export.torchlib import keep_torchlib

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "##s", "on", "the"]
PIECES += ["mat", "grass", "sits", "runs", "red", "old", "'", "s", "two", "##ing"]
CONCEPTS = ["cat", "dog", "mat", "grass", "old dog", "red mat", "two cats"]
CONFIG = LightCapConfig(
    encoder="small-resnet", image_size=64, grid=2, channels=768, alignment=16, embedding=12,
    concepts=len(CONCEPTS), top_concepts=3, modulator=10, vocabulary=len(PIECES), hidden=24,
    layers=2, heads=4, ffn=40, positions=32, prediction_heads=3, begin=2, end=3, mask=4,
)  # fmt: skip


def tiny_model(seed: int = 3) -> LightCap:
    """Sharp attention, so that captions differ from photo to photo and end at several lengths."""
    torch.manual_seed(seed)
    model = LightCap(CONFIG).eval()
    model.set_concept_names([[6], [7], [11], [12], [16, 7], [15, 11], [19, 6, 8, 5, 9]])
    _stir(model, 0.3)
    with torch.no_grad():
        model.grid_in.weight.normal_(std=0.05)
        for layer in model.layers:
            assert isinstance(layer, FusionLayer)
            layer.value.weight.mul_(6)
            layer.query.weight.mul_(6)
        for head in model.prediction:
            assert isinstance(head, PredictionHead)
            head.bias[CONFIG.end] += 1
    return model


def tiny_folder(seed: int = 3) -> LightCapFolder:
    """Rounded to float16, as its files are."""
    model, encoder = tiny_model(seed), new_encoder("small-resnet").eval()
    _stir(encoder, 0.1)
    for module in (model, encoder):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.half().float()
    return LightCapFolder(CONFIG, encoder, model, PIECES, CONCEPTS, {"name": "tiny"})


def random_grid(batch: int, seed: int = 1) -> Tensor:
    """Not negative, as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    return 8 * torch.rand(batch, CONFIG.cells, CONFIG.channels, generator=generator)


def random_captions(batch: int, captions: int, steps: int, seed: int = 2) -> Tensor:
    """[batch, captions, steps], each from `begin` on, none of them with an end."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(5, CONFIG.vocabulary, (batch, captions, steps), generator=generator)
    known[..., 0] = CONFIG.begin
    return known


def pictures(count: int = 4) -> dict[str, NDArray[np.uint8]]:
    """Of several sizes; no two alike."""
    random = np.random.default_rng(3)
    sizes = ((40, 60), (90, 33), (64, 64), (50, 50))
    return {
        f"{index}.png": random.integers(0, 256, (*sizes[index % 4], 3), np.uint8) // (1 + index)
        for index in range(count)
    }


@cache
def exported() -> tuple[LightCapFolder, LightCapGraphs]:
    """The tiny folder and its graphs, once a process: torch's exporter takes its time.

    What no caption contains is forbidden in the folder, as the export does it.
    """
    folder = tiny_folder()
    keep_torchlib()
    return folder, export_graphs(folder)


def _stir(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
