"""Nemotron-4 and Minitron: ungated squared ReLU, LayerNorm, rotary positions on part of a head.

    y = W_down relu(W_up x)^2                     two rows a bundle: up, down

Quirks: LayerNorm1P scales by 1 + weight, so 1 is added to every norm's weight; only the first
`partial_rotary_factor` of each head is rotated, in the half-split layout, so rows stay in place.
"""

from __future__ import annotations

from collections.abc import Collection

from penstock.export.activations import sparse_activation
from penstock.export.architectures import require
from penstock.export.hf_config import HFConfig
from penstock.export.model_spec import MappedTensor, ModelSpec
from penstock.export.rope_scaling import read_rope

MODEL_TYPES = ("nemotron",)
PARTIAL_ROTARY = 0.5  # NemotronConfig's default


def read_spec(config: HFConfig) -> ModelSpec:
    """Hyperparameters. Raises UnsupportedModelError."""
    width = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", default=width // heads)
    rope = read_rope(config, head_dim, PARTIAL_ROTARY)
    where = f"{config.path}: 'hidden_act'"
    activation, _ = sparse_activation(config.text("hidden_act", default="relu2"), where)
    return ModelSpec(
        arch="nemotron",
        name=config.path.resolve().parent.name,
        layers=config.integer("num_hidden_layers"),
        width=width,
        neurons=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        context=config.integer("max_position_embeddings", default=4096),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", default=heads),
        head_dim=head_dim,
        norm_eps=config.number("norm_eps", default=1e-5),
        norm_rms=False,
        activation=activation,
        gated=False,
        tied=config.flag("tie_word_embeddings", False),
        rope_base=rope.base,
        rope_dims=rope.dims,
        rope_inv_freq=rope.inv_freq,
    )


def map_tensors(
    spec: ModelSpec, config: HFConfig, names: Collection[str]
) -> dict[str, MappedTensor]:
    """Names and layouts; biases where the checkpoint has them."""
    q_width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    found: dict[str, MappedTensor] = {}

    def take(ours: str, theirs: str, *shape: int) -> None:
        require(names, f"{theirs}.weight", config)
        found[f"{ours}.weight"] = MappedTensor(f"{theirs}.weight", shape)
        if f"{theirs}.bias" in names:
            found[f"{ours}.bias"] = MappedTensor(f"{theirs}.bias", shape[:1])

    def take_norm(ours: str, theirs: str) -> None:
        weight, bias = require(names, f"{theirs}.weight", config), f"{theirs}.bias"
        found[f"{ours}.weight"] = MappedTensor(weight, (spec.width,), add=1.0)
        found[f"{ours}.bias"] = MappedTensor(require(names, bias, config), (spec.width,))

    take("token_embd", "model.embed_tokens", spec.vocab, spec.width)
    for n in range(spec.layers):
        ours, theirs = f"blk.{n}", f"model.layers.{n}"
        take_norm(f"{ours}.attn_norm", f"{theirs}.input_layernorm")
        take(f"{ours}.attn_q", f"{theirs}.self_attn.q_proj", q_width, spec.width)
        take(f"{ours}.attn_k", f"{theirs}.self_attn.k_proj", kv_width, spec.width)
        take(f"{ours}.attn_v", f"{theirs}.self_attn.v_proj", kv_width, spec.width)
        take(f"{ours}.attn_output", f"{theirs}.self_attn.o_proj", spec.width, q_width)
        take_norm(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm")
        take(f"{ours}.ffn_up", f"{theirs}.mlp.up_proj", spec.neurons, spec.width)
        take(f"{ours}.ffn_down", f"{theirs}.mlp.down_proj", spec.width, spec.neurons)
    take_norm("output_norm", "model.norm")
    if not spec.tied:
        take("output", "lm_head", spec.vocab, spec.width)
    return found
