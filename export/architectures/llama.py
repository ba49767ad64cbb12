"""Llama with a sparse, gated feed-forward network: ReluLLaMA, ProSparse, Bamboo.

    y = W_down (act(W_gate x) * W_up x)           three rows a bundle: gate, up, down

Quirks: rows of q and k go from the half-split rotary layout to GGUF's interleaved one. ProSparse
(`sparsellama`) has FATReLU with `hidden_act_param` as threshold; Bamboo applies ReLU to gate and up
(dReLU) though its config says `relu`.

Checkpoints: SparseLLM/ReluLLaMA-7B, SparseLLM/prosparse-llama-2-7b, PowerInfer/Bamboo-base-v0_1.
"""

from __future__ import annotations

from collections.abc import Collection

from penstock.errors import UnsupportedModelError
from penstock.export.activations import sparse_activation
from penstock.export.architectures import require
from penstock.export.hf_config import HFConfig
from penstock.export.model_spec import MappedTensor, ModelSpec, interleaved_rotary_rows
from penstock.export.rope_scaling import read_rope

MODEL_TYPES = ("llama", "sparsellama", "bamboo")


def read_spec(config: HFConfig) -> ModelSpec:
    """Hyperparameters of a gated model. Raises UnsupportedModelError."""
    model_type = config.text("model_type")
    if model_type == "bamboo" and (config.has("mamba_d_state") or config.has("attn_layer_indices")):
        raise UnsupportedModelError(
            f"{config.path}: this 'bamboo' is IBM's hybrid of attention and Mamba, which is not "
            "supported; "
            "the one that is supported is PowerInfer's Bamboo-7B"
        )
    if config.flag("mlp_bias"):
        raise UnsupportedModelError(
            f"{config.path}: 'mlp_bias' is true; a gated network with biases is not supported"
        )
    threshold = (
        config.number("hidden_act_param", default=0.0) if config.has("hidden_act_param") else None
    )
    where = f"{config.path}: 'hidden_act'"
    activation, threshold_value = sparse_activation(config.text("hidden_act"), where, threshold)
    if model_type == "bamboo":
        activation = "drelu"
    return read_rotary_spec(config, "llama", activation, gated=True, threshold=threshold_value)


def read_rotary_spec(
    config: HFConfig, arch: str, activation: str, gated: bool, threshold: float = 0.0
) -> ModelSpec:
    """What Llama and its kin (Arcee) write alike in config.json."""
    width = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", default=width // heads)
    context = config.integer("max_position_embeddings", default=2048)
    if config.has("sliding_window"):
        # Within one window, attention over the window is attention over everything.
        context = min(context, config.integer("sliding_window"))
    rope = read_rope(config, head_dim)
    return ModelSpec(
        arch=arch,
        name=config.path.resolve().parent.name,
        layers=config.integer("num_hidden_layers"),
        width=width,
        neurons=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        context=context,
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", default=heads),
        head_dim=head_dim,
        norm_eps=config.number("rms_norm_eps", default=1e-6 if arch == "llama" else 1e-5),
        norm_rms=True,
        activation=activation,
        threshold=threshold,
        gated=gated,
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
    rope = read_rope(config, spec.head_dim)
    q_rows = interleaved_rotary_rows(spec.heads, spec.head_dim)
    k_rows = interleaved_rotary_rows(spec.kv_heads, spec.head_dim)
    found: dict[str, MappedTensor] = {}

    def take(ours: str, theirs: str, *shape: int) -> None:
        found[ours] = MappedTensor(require(names, theirs, config), shape)

    take("token_embd.weight", "model.embed_tokens.weight", spec.vocab, spec.width)
    for n in range(spec.layers):
        ours, theirs = f"blk.{n}", f"model.layers.{n}"
        take(f"{ours}.attn_norm.weight", f"{theirs}.input_layernorm.weight", spec.width)
        for part, rows, height, columns in (
            ("q", q_rows, q_width, spec.width),
            ("k", k_rows, kv_width, spec.width),
            ("v", None, kv_width, spec.width),
            ("o", None, spec.width, q_width),
        ):
            projection = f"{theirs}.self_attn.{part}_proj"
            name = f"{ours}.attn_{'output' if part == 'o' else part}"
            scale = rope.qk_scale if part in "qk" else 1.0
            require(names, f"{projection}.weight", config)
            found[f"{name}.weight"] = MappedTensor(
                f"{projection}.weight", (height, columns), rows, scale
            )
            if f"{projection}.bias" in names:
                found[f"{name}.bias"] = MappedTensor(f"{projection}.bias", (height,), rows, scale)
        take(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight", spec.width)
        if spec.gated:
            take(
                f"{ours}.ffn_gate.weight",
                f"{theirs}.mlp.gate_proj.weight",
                spec.neurons,
                spec.width,
            )
        take(f"{ours}.ffn_up.weight", f"{theirs}.mlp.up_proj.weight", spec.neurons, spec.width)
        take(f"{ours}.ffn_down.weight", f"{theirs}.mlp.down_proj.weight", spec.width, spec.neurons)
        if not spec.gated and f"{theirs}.mlp.up_proj.bias" in names:
            take(f"{ours}.ffn_up.bias", f"{theirs}.mlp.up_proj.bias", spec.neurons)
            take(f"{ours}.ffn_down.bias", f"{theirs}.mlp.down_proj.bias", spec.width)
    take("output_norm.weight", "model.norm.weight", spec.width)
    if not spec.tied:
        take("output.weight", "lm_head.weight", spec.vocab, spec.width)
    return found
