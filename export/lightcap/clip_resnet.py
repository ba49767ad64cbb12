"""CLIP's ResNet-50 image encoder in plain torch, without the attention pooler that ends it.

Three things differ from torchvision's ResNet-50 (Radford et al. 2021, arXiv 2103.00020, section
2.4; He et al. 2019, arXiv 1812.01187, the "D" variant):

    stem        three 3x3 convolutions and an average pool where there was one 7x7 and a max pool
    strides     an average pool before a 1x1 convolution with stride 1: nothing is skipped over
    the end     attention over the grid where there was a mean; LightCap leaves it out and takes the
                grid itself (arXiv 2212.08985, section 3.1)

Parameters have the names of OpenAI's checkpoints less `visual.`. Shapes in comments: B images,
H x W pixels, C channels of the grid (2048), S x S cells of the grid (7 x 7 at 224 pixels).
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, cat, empty, nn

IMAGE_SIDE = 224
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1], as CLIP was trained
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
EXPANSION = 4
HEAD = 64  # channels of an attention head


class ClipResNet(nn.Module):
    """(B, 3, H, W) normalised pixels -> (B, (H/32)(W/32), 32 width) grid features, row by row."""

    def __init__(self, blocks: tuple[int, int, int, int] = (3, 4, 6, 3), width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks[0], stride=1)
        self.layer2 = _stage(width * 4, width * 2, blocks[1], stride=2)
        self.layer3 = _stage(width * 8, width * 4, blocks[2], stride=2)
        self.layer4 = _stage(width * 16, width * 8, blocks[3], stride=2)
        self.channels = width * 8 * EXPANSION

    def forward(self, pixels: Tensor) -> Tensor:
        return self.feature_map(pixels).flatten(2).transpose(1, 2)

    def feature_map(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/32, W/32), for pooling regions."""
        x = F.relu(self.bn1(self.conv1(pixels)))  # (B, width/2, H/2, W/2)
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.avg_pool2d(x, 2)  # (B, width, H/4, W/4)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual; a stride is an average pool after the 3x3."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * EXPANSION
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                OrderedDict[str, nn.Module](
                    [
                        ("-1", nn.AvgPool2d(stride)),  # so that the rest has the checkpoint's names
                        ("0", nn.Conv2d(inputs, outputs, 1, bias=False)),
                        ("1", nn.BatchNorm2d(outputs)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        if self.stride > 1:
            out = F.avg_pool2d(out, self.stride)
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, planes, stride)
    return nn.Sequential(
        first, *(Bottleneck(planes * EXPANSION, planes, 1) for _ in range(1, blocks))
    )


class AttentionPool2d(nn.Module):
    """CLIP's own end of the image encoder: (B, S*S, C) grid -> (B, E) in the space of its texts.

    The mean of the grid asks, by one layer of attention, the mean and the cells. In LightCap only
    training uses it: what it makes of a region is what the alignment module learns to say.
    """

    def __init__(self, side: int = 7, channels: int = 2048, embedding: int = 1024) -> None:
        super().__init__()
        self.heads = channels // HEAD
        self.positional_embedding = nn.Parameter(empty(side * side + 1, channels))
        nn.init.uniform_(self.positional_embedding, -(channels**-0.5), channels**-0.5)
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embedding)

    def forward(self, grid: Tensor) -> Tensor:
        x = cat([grid.mean(1, keepdim=True), grid], 1) + self.positional_embedding  # (B, 1+S*S, C)
        q, k, v = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        q, k, v = (t.unflatten(-1, (self.heads, HEAD)).transpose(1, 2) for t in (q, k, v))
        pooled = F.scaled_dot_product_attention(q, k, v)  # (B, heads, 1, 64)
        out: Tensor = self.c_proj(pooled.flatten(1))
        return out
