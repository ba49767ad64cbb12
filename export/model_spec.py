"""What an export needs to know of a model, whatever file it comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MetadataValue = str | bool | int | float | list[str] | NDArray[np.generic]


@dataclass(frozen=True)
class ModelSpec:
    """Shape and arithmetic of a model, in the terms of docs/bundle-format.md.

    Attributes:
        arch: `general.architecture` of the bundle: opt, arcee, nemotron or llama.
        width: model dimension; neurons: of one feed-forward layer; vocab: rows of the embedding.
        context: most tokens that positions exist for.
        norm_eps, norm_rms: of every norm, and whether it is RMSNorm (else LayerNorm).
        activation, threshold, gated: the feed-forward network: relu, relu2, fatrelu or drelu.
        tied: the output matrix is the token embedding.
        rope_base, rope_dims: rotary positions; None for learned ones.
        rope_inv_freq: (rope_dims / 2,) inverse frequencies where the source scales them.
        norm_post: norms follow the residual sum (OPT-350M).
    """

    arch: str
    name: str
    layers: int
    width: int
    neurons: int
    vocab: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    norm_rms: bool
    activation: str
    gated: bool
    tied: bool
    threshold: float = 0.0
    rope_base: float | None = None
    rope_dims: int | None = None
    rope_inv_freq: tuple[float, ...] | None = None
    norm_post: bool = False

    def metadata(self) -> dict[str, MetadataValue]:
        """The model's keys of a bundle; ints are written as u32, floats as f32."""
        a = self.arch
        eps = "layer_norm_rms_epsilon" if self.norm_rms else "layer_norm_epsilon"
        keys: dict[str, MetadataValue] = {
            "general.name": self.name,
            f"{a}.block_count": self.layers,
            f"{a}.embedding_length": self.width,
            f"{a}.feed_forward_length": self.neurons,
            f"{a}.context_length": self.context,
            f"{a}.attention.head_count": self.heads,
            f"{a}.attention.head_count_kv": self.kv_heads,
            f"{a}.attention.key_length": self.head_dim,
            f"{a}.attention.value_length": self.head_dim,
            f"{a}.attention.{eps}": self.norm_eps,
            f"{a}.vocab_size": self.vocab,
            "penstock.activation": self.activation,
            "penstock.activation.threshold": self.threshold,
            "penstock.gated": self.gated,
        }
        if self.rope_base is not None and self.rope_dims is not None:
            keys[f"{a}.rope.freq_base"] = self.rope_base
            keys[f"{a}.rope.dimension_count"] = self.rope_dims
        if self.rope_inv_freq is not None:
            keys["penstock.rope.inv_freq"] = np.array(self.rope_inv_freq, np.float32)
        if self.norm_post:
            keys["penstock.norm.post"] = True
        return keys


@dataclass(frozen=True)
class MappedTensor:
    """How one tensor of a bundle comes from a checkpoint's tensor.

        bundle[r] = scale * checkpoint[rows[r]] @ right + add

    Attributes:
        source: the checkpoint's name of it.
        shape: in the bundle: (rows, columns) or (elements,).
        rows: (rows,) which row of the checkpoint each row is; None: the same.
        scale, add: applied to every element.
        right: a matrix (source columns, columns) to multiply with, `right_transposed` as stored.
    """

    source: str
    shape: tuple[int, ...]
    rows: NDArray[np.int64] | None = None
    scale: float = 1.0
    add: float = 0.0
    right: str | None = None
    right_transposed: bool = False


def interleaved_rotary_rows(heads: int, head_dim: int) -> NDArray[np.int64]:
    """Rows of q or k, from Hugging Face's half-split rotary layout to GGUF's interleaved one.

    Row r of the result is row `order[r]` of the checkpoint; (heads * head_dim,). The same as
    `permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    order = np.arange(heads * head_dim, dtype=np.int64)
    return order.reshape(heads, 2, head_dim // 2).swapaxes(1, 2).reshape(-1).copy()
