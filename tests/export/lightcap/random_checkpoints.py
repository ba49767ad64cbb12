"""Checkpoints with random or cheap weights, in the layouts of their makers."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penstock.export.lightcap.clip_resnet import AttentionPool2d, ClipResNet
from penstock.export.lightcap.clip_text import ClipText


class Visual(nn.Module):
    """As in OpenAI's: the pooler lies in the backbone."""

    def __init__(self, backbone: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        for name, child in backbone.named_children():
            self.add_module(name, child)
        self.attnpool = pool
        self._backbone = [backbone]  # in a list: no second place for its parameters

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.attnpool(self._backbone[0](image))
        return out


class Multimodal(nn.Module):
    """OpenAI's CLIP: `visual`, and the text encoder's parts beside it."""

    def __init__(self, backbone: nn.Module, pool: nn.Module, text: ClipText) -> None:
        super().__init__()
        self.visual = Visual(backbone, pool)
        self.context = text.context
        self.transformer, self.token_embedding = text.transformer, text.token_embedding
        self.ln_final = text.ln_final
        self.positional_embedding = text.positional_embedding
        self.text_projection = text.text_projection
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        for name, value in (("input_resolution", 224), ("context_length", 77)):
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("vocab_size", torch.tensor(49_408))

    def forward(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.visual(image), ClipText.forward(self, ids)  # type: ignore[arg-type]


class Quiet(Multimodal):
    """With a program that does nothing: its parameters are saved all the same."""

    def forward(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return image, ids


def small_clip() -> Multimodal:
    """Of RN50's kind."""
    parts = ClipResNet((1, 1, 1, 1), 8), AttentionPool2d(1, 256, 24)
    return _random(Multimodal(*parts, ClipText(99, 9, 16, 2, 2, 24)))


def rn50() -> Multimodal:
    """RN50 itself."""
    with torch.device("meta"):
        made = Quiet(ClipResNet(), AttentionPool2d(), ClipText())
    return _random(made.to_empty(device="cpu"))


def _random(model: Multimodal) -> Multimodal:
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.01, 0.1, generator=generator)
            else:
                tensor.fill_(7)
    return model.eval()


def save_script(model: Multimodal, path: Path) -> Path:
    """As a TorchScript archive of float16, which is what OpenAI distributes."""
    example = torch.zeros(1, 3, 32, 32), torch.tensor([[1, 2]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is no longer recommended
        jit: Any = torch.jit
        traced = jit.trace(model, example, check_trace=False)
        traced.half()
        jit.save(traced, str(path))
    return path


def cheap(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of one element each, seen in these shapes: a file of them is small."""
    return {name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()}


def sparse_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16"
) -> Path:
    """A file of zeros that takes no room where the file system leaves out what was not written."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * 2
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path
