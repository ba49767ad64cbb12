"""Llama as Meta trained it, with SiLU: nothing to stream by neuron, but an ordinary GGUF.

An architecture as in penstock.export.architectures, which has those with sparse activations.
"""

from __future__ import annotations

from penstock.errors import UnsupportedModelError
from penstock.export.architectures.llama import map_tensors, read_rotary_spec
from penstock.export.hf_config import HFConfig
from penstock.export.model_spec import ModelSpec

__all__ = ["MODEL_TYPES", "is_dense_llama", "map_tensors", "read_spec"]

MODEL_TYPES = ("llama",)


def is_dense_llama(config: HFConfig) -> bool:
    """Whether a checkpoint is one."""
    return config.text("model_type") in MODEL_TYPES and config.text("hidden_act") == "silu"


def read_spec(config: HFConfig) -> ModelSpec:
    """Hyperparameters. Raises UnsupportedModelError."""
    if config.flag("mlp_bias"):
        raise UnsupportedModelError(
            f"{config.path}: 'mlp_bias' is true; a gated network with biases is not supported"
        )
    return read_rotary_spec(config, "llama", "silu", gated=True)
