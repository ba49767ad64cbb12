"""Shapes of synthetic GGUF models, and the keys that each architecture of llama.cpp has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

ROPE_BASE = 10000.0


@dataclass(frozen=True)
class Arch:
    """What differs between architectures.

    Attributes:
        qk_norm: norms of queries and keys: over all heads ("full") or each ("head").
        over_chosen: weights of experts are normed over the chosen ones.
    """

    neox: bool = True
    qk_norm: str = ""
    over_chosen: bool = True
    biases: tuple[str, ...] = ()
    post_norms: bool = False


ARCHS = {
    "llama": Arch(neox=False),
    "qwen2": Arch(biases=("attn_q", "attn_k", "attn_v")),
    "gemma2": Arch(post_norms=True),
    "olmoe": Arch(qk_norm="full", over_chosen=False),
    "qwen3moe": Arch(qk_norm="head"),
    "gpt-oss": Arch(
        biases=("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp", "ffn_gate_exps",
                "ffn_up_exps", "ffn_down_exps"),
    ),
    "deepseek2": Arch(neox=False, over_chosen=False),
    "granitemoe": Arch(neox=False),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model.

    Attributes:
        dtype: of feed-forward matrices; other: of all other matrices.
        experts: 0 for a dense model; used: how many of them a token takes.
        neurons: of a dense feed-forward layer or of one expert.
        shared: experts that every token takes; dense: first layers without experts.
        latent: rank of the compressed keys and values (deepseek2).
        reuse: share of a token's experts that the next one uses too; None: as chance has it.
    """

    name: str
    arch: str
    layers: int
    width: int
    neurons: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    dtype: str
    other: str
    experts: int = 0
    used: int = 0
    shared: int = 0
    dense: int = 0
    latent: int = 0
    tied: bool = False
    context: int = 4096
    reuse: float | None = None

    def typed(self, dtype: str, other: str | None = None) -> Shape:
        """The same model in another number format; Q8_0 beside MXFP4, as such models come."""
        return replace(self, dtype=dtype, other=other or ("Q8_0" if dtype == "MXFP4" else dtype))


def tiny(arch: str, name: str = "", **more: Any) -> Shape:
    """A model of some megabytes for tests."""
    values: dict[str, Any] = {
        "layers": 3, "width": 256, "neurons": 768, "heads": 4, "kv_heads": 2, "head_dim": 64,
        "vocab": 512, "dtype": "Q8_0", "other": "Q8_0", "context": 512,
    }  # fmt: skip
    if more.get("experts"):
        values |= {"layers": 4, "neurons": 256}
    return Shape(name or f"tiny-{arch}", arch, **{**values, **more})


_SHAPES = [
    Shape("llama-3b", "llama", 28, 3072, 8192, 24, 8, 128, 32000, "Q8_0", "Q8_0"),
    Shape("olmoe-7b", "olmoe", 16, 2048, 1024, 16, 16, 128, 50304, "Q4_0", "Q4_0", 64, 8),
    tiny("llama"),
    tiny("qwen2"),
    tiny("gemma2", tied=True),
    tiny("llama", "tiny-llama-tied", tied=True),
    tiny("olmoe", experts=16, used=4, kv_heads=4),
    tiny("qwen3moe", experts=16, used=4),
    tiny("llama", "tiny-mixtral", experts=8, used=2),
    tiny("gpt-oss", experts=16, used=4, dtype="MXFP4"),
    tiny("deepseek2", experts=16, used=4, shared=2, dense=1, latent=128, kv_heads=1, head_dim=96),
    tiny("granitemoe", experts=16, used=4, tied=True),
]
SHAPES = {s.name: s for s in _SHAPES}


def embedding_scale(s: Shape) -> float:
    """What the architecture multiplies embeddings with."""
    return float(s.width**0.5) if s.arch == "gemma2" else 12.0 if s.arch == "granitemoe" else 1.0


def metadata(s: Shape) -> dict[str, Any]:
    """The keys of a model's architecture, without the tokenizer's."""
    a = s.arch
    keys: dict[str, Any] = {
        "general.name": f"{s.name}, synthetic weights",
        f"{a}.block_count": s.layers,
        f"{a}.context_length": s.context,
        f"{a}.embedding_length": s.width,
        f"{a}.feed_forward_length": s.neurons,
        f"{a}.attention.head_count": s.heads,
        f"{a}.attention.head_count_kv": s.kv_heads,
        f"{a}.attention.key_length": s.head_dim,
        f"{a}.attention.value_length": s.head_dim,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.rope.freq_base": ROPE_BASE,
        f"{a}.rope.dimension_count": s.head_dim,
        f"{a}.vocab_size": s.vocab,
    }
    if s.experts:
        keys |= {
            f"{a}.expert_count": s.experts,
            f"{a}.expert_used_count": s.used,
            f"{a}.expert_feed_forward_length": s.neurons,
        }
    if a == "gemma2":
        keys |= {
            f"{a}.attention.sliding_window": s.context // 2,
            f"{a}.attn_logit_softcapping": 50.0,
            f"{a}.final_logit_softcapping": 30.0,
        }
    elif a == "gpt-oss":
        keys |= {f"{a}.attention.sliding_window": 128}
    elif a == "granitemoe":
        keys |= {
            f"{a}.embedding_scale": embedding_scale(s),
            f"{a}.residual_scale": 1.0,
            f"{a}.logit_scale": 1.0,
            f"{a}.attention.scale": s.head_dim**-0.5,
        }
    elif a == "deepseek2":
        rotated = s.head_dim // 3
        keys |= {
            f"{a}.leading_dense_block_count": s.dense,
            f"{a}.expert_shared_count": s.shared,
            f"{a}.expert_weights_scale": 1.0,
            f"{a}.expert_gating_func": 1,  # softmax
            f"{a}.attention.q_lora_rank": s.latent,
            f"{a}.attention.kv_lora_rank": s.latent,
            f"{a}.attention.key_length": s.latent + rotated,
            f"{a}.attention.value_length": s.latent,
            f"{a}.attention.key_length_mla": s.head_dim,
            f"{a}.attention.value_length_mla": s.head_dim - rotated,
            f"{a}.rope.dimension_count": rotated,
        }
    return keys
