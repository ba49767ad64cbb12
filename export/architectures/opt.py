"""OPT 125M to 66B: ungated ReLU, LayerNorm, learned positions, biases everywhere.

    y = W_down relu(W_up x + b_up) + b_down       two rows a bundle: up, down

Quirks:
- The position table starts with two rows that are never used; they are dropped.
- 350M normalises after the residual sum (`do_layer_norm_before` false) and has no final norm.
- 350M's embedding is narrower than the model (`word_embed_proj_dim`), with a matrix in and one out.
  Both are folded: x = P_in e = (E P_in^T)[token], and logits = E (P_out h) = (E P_out) h. The
  result has an embedding and an output matrix of full width and needs no extra operation.
- Checkpoints name tensors with or without a leading `model.`.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from penstock.errors import UnsupportedModelError
from penstock.export.activations import sparse_activation
from penstock.export.architectures import require
from penstock.export.hf_config import HFConfig
from penstock.export.model_spec import MappedTensor, ModelSpec

MODEL_TYPES = ("opt",)
POSITION_OFFSET = 2


def read_spec(config: HFConfig) -> ModelSpec:
    """Hyperparameters. Raises UnsupportedModelError."""
    for key, wanted in (
        ("layer_norm_elementwise_affine", True),
        ("_remove_final_layer_norm", False),
    ):
        if config.flag(key, wanted) != wanted:
            raise UnsupportedModelError(
                f"{config.path}: '{key}' is {not wanted}; only {wanted} is supported, as in OPT's "
                "releases"
            )
    width = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    where = f"{config.path}: 'activation_function'"
    activation, _ = sparse_activation(config.text("activation_function", default="relu"), where)
    projected = config.integer("word_embed_proj_dim", default=width) != width
    return ModelSpec(
        arch="opt",
        name=config.path.resolve().parent.name,
        layers=config.integer("num_hidden_layers"),
        width=width,
        neurons=config.integer("ffn_dim"),
        vocab=config.integer("vocab_size"),
        context=config.integer("max_position_embeddings", default=2048),
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        norm_eps=1e-5,  # torch.nn.LayerNorm's; OPT has no key for it
        norm_rms=False,
        activation=activation,
        gated=False,
        tied=config.flag("tie_word_embeddings", True) and not projected,
        norm_post=not config.flag("do_layer_norm_before", True),
    )


def map_tensors(
    spec: ModelSpec, config: HFConfig, names: Collection[str]
) -> dict[str, MappedTensor]:
    """Names and layouts; biases where the checkpoint has them."""
    root = "model.decoder" if "model.decoder.embed_tokens.weight" in names else "decoder"
    found: dict[str, MappedTensor] = {}

    def take(ours: str, theirs: str, *shape: int) -> None:
        require(names, f"{root}.{theirs}.weight", config)
        found[f"{ours}.weight"] = MappedTensor(f"{root}.{theirs}.weight", shape)
        if f"{root}.{theirs}.bias" in names:
            found[f"{ours}.bias"] = MappedTensor(f"{root}.{theirs}.bias", shape[:1])

    _take_embeddings(found, spec, config, names, root)
    for n in range(spec.layers):
        ours, theirs = f"blk.{n}", f"layers.{n}"
        take(f"{ours}.attn_norm", f"{theirs}.self_attn_layer_norm", spec.width)
        for part in ("q", "k", "v"):
            take(f"{ours}.attn_{part}", f"{theirs}.self_attn.{part}_proj", spec.width, spec.width)
        take(f"{ours}.attn_output", f"{theirs}.self_attn.out_proj", spec.width, spec.width)
        take(f"{ours}.ffn_norm", f"{theirs}.final_layer_norm", spec.width)
        take(f"{ours}.ffn_up", f"{theirs}.fc1", spec.neurons, spec.width)
        take(f"{ours}.ffn_down", f"{theirs}.fc2", spec.width, spec.neurons)
    if not spec.norm_post:
        take("output_norm", "final_layer_norm", spec.width)
    return found


def _take_embeddings(
    found: dict[str, MappedTensor],
    spec: ModelSpec,
    config: HFConfig,
    names: Collection[str],
    root: str,
) -> None:
    table = require(names, f"{root}.embed_tokens.weight", config)
    positions = require(names, f"{root}.embed_positions.weight", config)
    head = "lm_head.weight" if "lm_head.weight" in names else table
    if not config.flag("tie_word_embeddings", True):
        require(names, "lm_head.weight", config)
    shape = (spec.vocab, spec.width)
    if config.integer("word_embed_proj_dim", default=spec.width) != spec.width:
        into = require(names, f"{root}.project_in.weight", config)  # (width, narrow)
        out = require(names, f"{root}.project_out.weight", config)  # (narrow, width)
        found["token_embd.weight"] = MappedTensor(table, shape, right=into, right_transposed=True)
        found["output.weight"] = MappedTensor(head, shape, right=out)
    else:
        found["token_embd.weight"] = MappedTensor(table, shape)
        if not spec.tied:
            found["output.weight"] = MappedTensor(head, shape)
    rows = np.arange(spec.context, dtype=np.int64) + POSITION_OFFSET
    found["position_embd.weight"] = MappedTensor(positions, (spec.context, spec.width), rows)
