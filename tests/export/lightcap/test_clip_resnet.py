"""The visual backbone against a slow one with folded batch norms, and published sizes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.export.lightcap.clip_resnet import AttentionPool2d, ClipResNet


def randomise(module: nn.Module, seed: int) -> None:
    """Random weights and statistics, so that a forgotten one shows; signals keep their size."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1:
            fan = math.prod(tensor.shape[1:])
            tensor.normal_(std=(2 / fan) ** 0.5, generator=generator)
        elif name.endswith(("running_var", "weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.2, generator=generator)


def test_sizes_are_those_published() -> None:
    with torch.device("meta"):
        backbone, pool = ClipResNet(), AttentionPool2d()
    assert sum(p.numel() for p in backbone.parameters()) == 23_527_264
    assert sum(p.numel() for p in pool.parameters()) == 14_789_632
    shapes = {name: tuple(t.shape) for name, t in backbone.state_dict().items()}
    assert shapes["conv1.weight"] == (32, 3, 3, 3)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["layer4.0.downsample.1.running_mean"] == (2048,)
    with torch.device("meta"):
        assert backbone(torch.empty(2, 3, 224, 224)).shape == (2, 49, 2048)


class SlowResNet:
    """Written from the paper's description, on raw tensors: convolutions with the batch norm
    folded in, strides as means over tiles."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {name: t.double() for name, t in weights.items()}

    def convolve(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        w = self.weights
        scale = w[f"{norm}.weight"] / (w[f"{norm}.running_var"] + 1e-5).sqrt()
        kernel = w[f"{conv}.weight"] * scale[:, None, None, None]
        bias = w[f"{norm}.bias"] - w[f"{norm}.running_mean"] * scale
        return F.conv2d(x, kernel, bias, stride=stride, padding=kernel.shape[-1] // 2)

    def shrink(self, x: Tensor) -> Tensor:
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    def block(self, x: Tensor, name: str, stride: int) -> Tensor:
        out = self.convolve(x, f"{name}.conv1", f"{name}.bn1").clamp(min=0)
        out = self.convolve(out, f"{name}.conv2", f"{name}.bn2").clamp(min=0)
        if stride == 2:
            out = self.shrink(out)
        out = self.convolve(out, f"{name}.conv3", f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.shrink(x) if stride == 2 else x
            x = self.convolve(x, f"{name}.downsample.0", f"{name}.downsample.1")
        return (out + x).clamp(min=0)

    def __call__(self, pixels: Tensor, blocks: tuple[int, ...]) -> Tensor:
        x = self.convolve(pixels.double(), "conv1", "bn1", stride=2).clamp(min=0)
        x = self.convolve(x, "conv2", "bn2").clamp(min=0)
        x = self.shrink(self.convolve(x, "conv3", "bn3").clamp(min=0))
        for stage, count in enumerate(blocks, start=1):
            for at in range(count):
                stride = 2 if at == 0 and stage > 1 else 1
                x = self.block(x, f"layer{stage}.{at}", stride)
        batch, channels, rows, columns = x.shape
        return x.permute(0, 2, 3, 1).reshape(batch, rows * columns, channels)


@pytest.mark.parametrize(("blocks", "width"), [((3, 4, 6, 3), 64), ((1, 2, 1, 1), 16)])
def test_grid_equals_a_slow_one(blocks: tuple[int, int, int, int], width: int) -> None:
    model = ClipResNet(blocks, width).eval()
    randomise(model, 3)
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        grid = model(pixels)
        slow = SlowResNet(model.state_dict())(pixels, blocks)
    assert grid.shape == (2, 2 * 3, 32 * width)
    assert float((grid - slow).abs().max() / slow.abs().max()) < 1e-5


def test_attention_pool_equals_a_slow_one() -> None:
    pool = AttentionPool2d(side=3, channels=128, embedding=24).eval()
    randomise(pool, 7)
    grid = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(9))
    w = {name: t.double() for name, t in pool.state_dict().items()}
    with torch.inference_mode():
        pooled = pool(grid)
    for row, cells in zip(pooled, grid.double(), strict=True):
        x = torch.vstack([cells.mean(0), cells]) + w["positional_embedding"]
        q = w["q_proj.weight"] @ x[0] + w["q_proj.bias"]
        k = x @ w["k_proj.weight"].T + w["k_proj.bias"]
        v = x @ w["v_proj.weight"].T + w["v_proj.bias"]
        heads = []
        for at in range(0, 128, 64):
            share = (k[:, at : at + 64] @ q[at : at + 64] / 8).softmax(0)
            heads.append(share @ v[:, at : at + 64])
        slow = w["c_proj.weight"] @ torch.cat(heads) + w["c_proj.bias"]
        assert float((row - slow).abs().max() / slow.abs().max()) < 1e-5
