"""A multilayer perceptron over the features of a sensor window (WISDM's 43: 43-64-32-6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.errors import UsageError
from penstock.federated.submodels import Axis, ModelSpec, TensorSpec, linear, width

if TYPE_CHECKING:
    from torch import nn

    from penstock.federated.models.registry import ModelOptions

WIDTHS = (64, 32)


def spec(options: ModelOptions) -> ModelSpec:
    """Tensors of the model."""
    features, widths = _sizes(options)
    before = Axis(features)
    tensors: list[TensorSpec] = []
    for number, channels in enumerate(widths, 1):
        hidden = Axis(channels, f"hidden{number}")
        tensors += linear(f"hidden{number}", hidden, before)
        before = hidden
    tensors += linear("classifier", Axis(options.classes), before)
    return ModelSpec(options.name, tuple(tensors))


def module(options: ModelOptions, ratio: float) -> nn.Module:
    """float32 [batch, features] to logits [batch, classes]."""
    from collections import OrderedDict

    from torch import nn

    before, widths = _sizes(options)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, channels in enumerate(widths, 1):
        narrow = width(channels, ratio)
        layers[f"hidden{number}"] = nn.Linear(before, narrow)
        layers[f"relu{number}"] = nn.ReLU()
        before = narrow
    layers["classifier"] = nn.Linear(before, options.classes)
    return nn.Sequential(layers)


def _sizes(options: ModelOptions) -> tuple[int, tuple[int, ...]]:
    if len(options.input_shape) != 1:
        raise UsageError(
            f"sensing-mlp: input_shape is {options.input_shape}, expected one length: the features"
        )
    return options.input_shape[0], options.widths or WIDTHS
