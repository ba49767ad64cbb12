"""The CNN of FedConv's MNIST experiments: two 3x3 convolutions and a linear layer.

Each convolution is followed by BatchNorm, ReLU and a 2x2 max pool (FedConv's release, section 1.3
of the notes: 16 and 32 channels, 1568 inputs of the linear layer for 28x28 pixels).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.errors import UsageError
from penstock.federated.submodels import Axis, ModelSpec, batch_norm, conv, linear, width

if TYPE_CHECKING:
    from torch import nn

    from penstock.federated.models.registry import ModelOptions

WIDTHS = (16, 32)


def spec(options: ModelOptions) -> ModelSpec:
    """Tensors of the model."""
    first, second, (channels, height, wide) = _sizes(options)
    conv1, conv2 = Axis(first, "conv1"), Axis(second, "conv2")
    flat = Axis(second, "conv2", (height // 4) * (wide // 4))
    return ModelSpec(
        options.name,
        (
            *conv("conv1", conv1, Axis(channels), 3, 3),
            *batch_norm("norm1", conv1),
            *conv("conv2", conv2, conv1, 3, 3),
            *batch_norm("norm2", conv2),
            *linear("classifier", Axis(options.classes), flat),
        ),
    )


def module(options: ModelOptions, ratio: float) -> nn.Module:
    """float32 [batch, channels, height, width] to logits [batch, classes]."""
    import torch
    from torch import nn

    first, second, (channels, height, wide) = _sizes(options)
    first, second = width(first, ratio), width(second, ratio)

    class ImageCnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels, first, 3, padding=1)
            self.norm1 = nn.BatchNorm2d(first)
            self.conv2 = nn.Conv2d(first, second, 3, padding=1)
            self.norm2 = nn.BatchNorm2d(second)
            flat = second * (height // 4) * (wide // 4)
            self.classifier = nn.Linear(flat, options.classes)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = torch.max_pool2d(torch.relu(self.norm1(self.conv1(images))), 2)
            x = torch.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
            logits: torch.Tensor = self.classifier(x.flatten(1))
            return logits

    return ImageCnn()


def _sizes(options: ModelOptions) -> tuple[int, int, tuple[int, int, int]]:
    shape, widths = options.input_shape, options.widths or WIDTHS
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise UsageError(
            f"image-cnn: input_shape is {shape}, expected channels, height and width, 4 or more"
        )
    if len(widths) != 2:
        raise UsageError(f"image-cnn: widths is {widths}, expected two numbers")
    return widths[0], widths[1], (shape[0], shape[1], shape[2])
