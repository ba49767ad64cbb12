"""The Arcee architecture in plain torch: rotary grouped-query attention and a squared-ReLU FFN.

Shapes in comments: B sequences, T tokens in each, D hidden, F neurons of the FFN, H query heads,
K key and value heads, E = head_dim, V vocabulary.

Parameter names are those of the Hugging Face checkpoint without the leading ``model.``, so a
weight file needs no mapping table. The FFN is ``down(relu(up(x)) ** 2)`` without a gate: a neuron
with ``relu == 0`` adds nothing, and its up row and down column need not be read at all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes of the model, under the key names of ``config.json``."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 1536
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @staticmethod
    def from_folder(folder: Path) -> Config:
        """Read ``config.json`` of a Hugging Face folder; refuse another architecture."""
        raw = json.loads((folder / "config.json").read_text())
        if raw.get("model_type") != "arcee" or not raw.get("tie_word_embeddings"):
            raise ValueError(f"{folder}/config.json: need model_type 'arcee' with tied embeddings")
        rope = raw.get("rope_parameters") or {}
        raw["rope_theta"] = float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
        return Config(**{key: raw[key] for key in asdict(Config()) if key in raw})

    def to_json(self) -> dict[str, object]:
        """The content of ``config.json`` for ``transformers.ArceeForCausalLM``."""
        fields: dict[str, object] = asdict(self)
        theta = fields.pop("rope_theta")
        return fields | {
            "architectures": ["ArceeForCausalLM"],
            "model_type": "arcee",
            "hidden_act": "relu2",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "dtype": "float16",
            "use_cache": True,
        }


class RMSNorm(nn.Module):
    """``x / rms(x) * weight``; the mean of squares is taken in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


def rotary_tables(config: Config, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (length, E); both halves hold the same."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), config.rope_theta**-half)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, heads, T, E), (T, E), (T, E)
    """Turn the pair (e, e + E/2) of every head by the angle of its position."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention in which H / K query heads share one key and value head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size, width = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(size, config.num_attention_heads * width, bias=False)
        self.k_proj = nn.Linear(size, config.num_key_value_heads * width, bias=False)
        self.v_proj = nn.Linear(size, config.num_key_value_heads * width, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * width, size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        batch, length, _ = x.shape
        width = self.config.head_dim
        q = self.q_proj(x).view(batch, length, -1, width).transpose(1, 2)  # (B, H, T, E)
        k = self.k_proj(x).view(batch, length, -1, width).transpose(1, 2)  # (B, K, T, E)
        v = self.v_proj(x).view(batch, length, -1, width).transpose(1, 2)  # (B, K, T, E)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The squared-ReLU FFN; also returns the ReLU, which sparsity is counted and penalised on."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, T, D) -> (B, T, D), (B, T, F)
        relu = F.relu(self.up_proj(x))
        return self.down_proj(relu * relu), relu


class Layer(nn.Module):
    """Attention and FFN, each behind a norm and added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        y, relu = self.mlp(self.post_attention_layernorm(x))
        return x + y, relu


class Storyteller(nn.Module):
    """The language model with tied embeddings; ``forward`` ends at the final norm.

    The logits (B, T, V) are sixteen times the hidden states, so the caller multiplies by
    ``embed_tokens.weight`` itself, where and in as many pieces as it wants.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rotary_tables(config, config.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # Outputs into the residual stream start at zero (Muon sets their scale at once); the
        # embedding starts small because it is the output layer too.
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens (B, T) to final hidden states (B, T, D) and the ReLU (B, T, F) of each layer."""
        x = self.embed_tokens(tokens)  # (B, T, D), the float32 residual stream
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        relus = []
        for layer in self.layers:
            x, relu = layer(x, cos, sin)
            relus.append(relu)
        return self.norm(x), relus

    def logits(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        """All logits at once; for evaluation and sampling."""
        return F.linear(self(tokens)[0], self.embed_tokens.weight)


def load_model(folder: Path) -> Storyteller:
    """Read ``config.json`` and ``model.safetensors`` of a Hugging Face folder, as float32."""
    model = Storyteller(Config.from_folder(folder))
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({k.removeprefix("model."): v.float() for k, v in state.items()})
    return model


def save_model(model: Storyteller, folder: Path) -> None:
    """Write ``config.json``, ``generation_config.json`` and F16 ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{k}": v.half().contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    generation: dict[str, object] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    generation |= {"do_sample": True, "temperature": 0.7, "top_p": 0.95}
    for name, content in (("config", model.config.to_json()), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
