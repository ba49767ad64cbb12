"""The visual encoder in training: which one, augmentation, features."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from penstock.export.lightcap.folder import new_encoder
from penstock.export.lightcap.mobilenet_v2 import load_mobilenet_v2

CHANNELS = {"mobilenet-v2": 1280, "small-resnet": 768}


def make_encoder(kind: str, weights: Path | None) -> nn.Module:
    """MobileNetV2 with weights from a .tflite or .safetensors, or a ResNet from nothing."""
    if kind == "mobilenet-v2" and weights is not None and weights.suffix == ".tflite":
        return load_mobilenet_v2(weights)
    model = new_encoder(kind)
    if kind == "mobilenet-v2" and weights is not None:
        model.load_state_dict(load_file(weights))
    return model


def normalise(pixels: Tensor) -> Tensor:
    """uint8 or 0..255 -> [-1, 1]."""
    return pixels.float() / 127.5 - 1


def augment(pixels: Tensor, size: int, least_area: float = 0.5) -> Tensor:
    """uint8 [batch, 3, H, W] -> [batch, 3, size, size] in [-1, 1]: cropped, mirrored."""
    batch, device = len(pixels), pixels.device
    x = normalise(pixels)
    area = torch.empty(batch, device=device).uniform_(least_area, 1.0)
    aspect = torch.empty(batch, device=device).uniform_(-0.2, 0.2).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    across = torch.empty(batch, device=device).uniform_(-1, 1) * (1 - width)
    down = torch.empty(batch, device=device).uniform_(-1, 1) * (1 - height)
    mirror = torch.randint(0, 2, (batch,), device=device) * 2 - 1
    zero = torch.zeros_like(width)
    rows = [
        torch.stack([width * mirror, zero, across], dim=1),
        torch.stack([zero, height, down], dim=1),
    ]
    where = F.affine_grid(torch.stack(rows, dim=1), [batch, 3, size, size], align_corners=False)
    x = F.grid_sample(x, where, align_corners=False, padding_mode="reflection")
    gain = torch.empty(batch, 1, 1, 1, device=device).uniform_(0.8, 1.2)
    shift = torch.empty(batch, 3, 1, 1, device=device).uniform_(-0.1, 0.1)
    grey = x.mean(dim=1, keepdim=True)
    colour = torch.empty(batch, 1, 1, 1, device=device).uniform_(0.6, 1.2)
    return ((grey + (x - grey) * colour) * gain + shift).clamp(-1, 1)
