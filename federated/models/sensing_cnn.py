"""A 1-D CNN over raw sensor windows: accelerometer and gyroscope channels over time.

Two convolutions of length 5 with BatchNorm, ReLU and max pools of 2, then the mean over time, so
that windows of any length of 8 or more samples fit the same parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.errors import UsageError
from penstock.federated.submodels import Axis, ModelSpec, batch_norm, conv, linear, width

if TYPE_CHECKING:
    from torch import nn

    from penstock.federated.models.registry import ModelOptions

WIDTHS, KERNEL = (32, 64), 5


def spec(options: ModelOptions) -> ModelSpec:
    """Tensors of the model."""
    first, second, channels = _sizes(options)
    conv1, conv2 = Axis(first, "conv1"), Axis(second, "conv2")
    return ModelSpec(
        options.name,
        (
            *conv("conv1", conv1, Axis(channels), KERNEL),
            *batch_norm("norm1", conv1),
            *conv("conv2", conv2, conv1, KERNEL),
            *batch_norm("norm2", conv2),
            *linear("classifier", Axis(options.classes), conv2),
        ),
    )


def module(options: ModelOptions, ratio: float) -> nn.Module:
    """float32 [batch, channels, time] to logits [batch, classes]."""
    import torch
    from torch import nn

    first, second, channels = _sizes(options)
    first, second = width(first, ratio), width(second, ratio)

    class SensingCnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv1d(channels, first, KERNEL, padding=KERNEL // 2)
            self.norm1 = nn.BatchNorm1d(first)
            self.conv2 = nn.Conv1d(first, second, KERNEL, padding=KERNEL // 2)
            self.norm2 = nn.BatchNorm1d(second)
            self.classifier = nn.Linear(second, options.classes)

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            x = torch.max_pool1d(torch.relu(self.norm1(self.conv1(windows))), 2)
            x = torch.max_pool1d(torch.relu(self.norm2(self.conv2(x))), 2)
            logits: torch.Tensor = self.classifier(x.mean(dim=2))
            return logits

    return SensingCnn()


def _sizes(options: ModelOptions) -> tuple[int, int, int]:
    shape, widths = options.input_shape, options.widths or WIDTHS
    if len(shape) != 2 or shape[1] < 8:
        raise UsageError(
            f"sensing-cnn: input_shape is {shape}, expected channels and 8 or more samples"
        )
    if len(widths) != 2:
        raise UsageError(f"sensing-cnn: widths is {widths}, expected two numbers")
    return widths[0], widths[1], shape[0]
