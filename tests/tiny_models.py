"""Tiny random Hugging Face models, their weights on the grid that a bundle stores, and exports.

The oracle of the runtime is transformers in float32 with the weights that the bundle can hold: what
is compared is arithmetic, not rounding of weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType, dequantize, quantize
from numpy.typing import NDArray

from penstock.export.llm import export_llm

Floats = NDArray[np.float32]
TYPES = {t: GGMLQuantizationType[t] for t in ("F16", "Q8_0", "Q4_0")}
FATRELU_THRESHOLD = 0.3


@dataclass(frozen=True)
class Family:
    """How a model is made.

    Attributes:
        config: transformers' config class; options: beside the shape that all share.
        rewrite: what is changed in config.json, for models that transformers does not have.
        feed_forward: replaces the oracle's, (mlp, x) -> y, for the same reason.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    rewrite: dict[str, Any] = field(default_factory=dict)
    feed_forward: Callable[[Any, torch.Tensor], torch.Tensor] | None = None


def _fatrelu(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    gate = mlp.gate_proj(x)
    kept = torch.where(gate > FATRELU_THRESHOLD, gate, torch.zeros_like(gate))
    return mlp.down_proj(kept * mlp.up_proj(x))  # type: ignore[no-any-return]


def _drelu(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    gate, up = torch.relu(mlp.gate_proj(x)), torch.relu(mlp.up_proj(x))
    return mlp.down_proj(gate * up)  # type: ignore[no-any-return]


_GQA = {"num_key_value_heads": 2}
FAMILIES = {
    "opt": Family("OPTConfig"),
    "opt-post-norm": Family("OPTConfig", {"do_layer_norm_before": False}),
    "opt-350m": Family("OPTConfig", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "arcee": Family("ArceeConfig", _GQA),
    "arcee-tied-wide-heads": Family("ArceeConfig", {"tie_word_embeddings": True, "head_dim": 32}),
    "nemotron": Family("NemotronConfig", _GQA),
    "llama-relu": Family("LlamaConfig", {**_GQA, "hidden_act": "relu"}),
    "llama-relu2": Family("LlamaConfig", {"hidden_act": "relu2", "attention_bias": True}),
    "llama-scaled-rope": Family(
        "LlamaConfig",
        {
            "hidden_act": "relu",
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama-fatrelu": Family(
        "LlamaConfig",
        # FATReLU jumps at its threshold, so an input within rounding of it may go either way. One
        # layer and this seed have none so near.
        {"hidden_act": "relu", "num_hidden_layers": 1},
        {
            "model_type": "sparsellama", "hidden_act": "fatrelu",
            "hidden_act_param": FATRELU_THRESHOLD,
        },
        _fatrelu,
    ),
    "llama-drelu": Family("LlamaConfig", {"hidden_act": "relu"}, {"model_type": "bamboo"}, _drelu),
}  # fmt: skip


@dataclass
class TinyModel:
    """A bundle and its oracle."""

    path: Path
    folder: Path
    oracle: Any

    def reference(self, tokens: NDArray[np.int32]) -> Floats:
        """(tokens, vocab) logits of transformers."""
        with torch.no_grad():
            out = self.oracle(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
        values: Floats = out.numpy()
        return values


def make_tiny_model(folder: Path, family: str, dtype: str = "F16", seed: int = 0) -> TinyModel:
    """A random model, saved as a Hugging Face folder and exported."""
    kind = FAMILIES[family]
    oracle = _random_model(kind, seed)
    source = folder / f"{family}-{dtype}"
    source.mkdir(parents=True)
    path = folder / f"{family}-{dtype}.gguf"
    projected = "word_embed_proj_dim" in kind.options
    _round_weights(oracle, dtype, projected)
    oracle.save_pretrained(source)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**settings, **kind.rewrite}))
    export_llm(source, path, dtype=dtype, calibrate=False, evaluate=False, tokenizer=False)
    return TinyModel(path, source, oracle)


def _random_model(kind: Family, seed: int) -> Any:
    shape = {
        "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    shape["ffn_dim" if kind.config == "OPTConfig" else "intermediate_size"] = 160
    config = getattr(transformers, kind.config)(**{**shape, **kind.options})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        scale = weight.shape[-1] ** -0.5 if weight.dim() == 2 else 0.3
        if "embed" in name:
            scale = 1.0 if "positions" not in name else 0.5
        values = torch.randn(weight.shape, generator=generator) * scale
        if "norm" in name and name.endswith("weight") and kind.config != "NemotronConfig":
            values += 1.0
        weight.data = values
    if kind.feed_forward is not None:
        for layer in model.model.layers:
            layer.mlp.forward = kind.feed_forward.__get__(layer.mlp)
    return model


def _round_weights(model: Any, dtype: str, projected: bool) -> None:
    """Every matrix becomes what the bundle holds: rows in blocks, the down matrix by columns."""
    for name, weight in model.named_parameters():
        if weight.dim() != 2:
            continue
        form = dtype
        if dtype == "Q4_0" and ("embed" in name or "lm_head" in name):
            form = "Q8_0"  # embeddings keep eight bits
        down = "down_proj" in name or "fc2" in name
        if projected and ("embed_tokens" in name or "project_" in name):
            continue  # folded in float32, rounded after it
        values = weight.data.numpy().T.copy() if down else weight.data.numpy()
        rounded = stored_grid(values, form)
        weight.data = torch.from_numpy(rounded.T.copy() if down else rounded)


def stored_grid(values: Floats, dtype: str) -> Floats:
    """What is left of these values after they are stored: by the gguf package."""
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float32)
    raw = quantize(np.ascontiguousarray(values), TYPES[dtype])
    out: Floats = dequantize(raw, TYPES[dtype])
    return out.reshape(values.shape)
