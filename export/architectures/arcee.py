"""Arcee (AFM-4.5B) and Penstock's storyteller: Llama with an ungated squared ReLU.

    y = W_down relu(W_up x)^2                     two rows a bundle: up, down

Quirks: as in Llama, rows of q and k go to the interleaved rotary layout.
"""

from __future__ import annotations

from penstock.export.activations import sparse_activation
from penstock.export.architectures.llama import map_tensors, read_rotary_spec
from penstock.export.hf_config import HFConfig
from penstock.export.model_spec import ModelSpec

__all__ = ["MODEL_TYPES", "map_tensors", "read_spec"]

MODEL_TYPES = ("arcee",)


def read_spec(config: HFConfig) -> ModelSpec:
    """Hyperparameters. Raises UnsupportedModelError."""
    where = f"{config.path}: 'hidden_act'"
    activation, _ = sparse_activation(config.text("hidden_act", default="relu2"), where)
    return read_rotary_spec(config, "arcee", activation, gated=False)
