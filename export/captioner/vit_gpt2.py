"""A vision transformer and a GPT-2 that looks at it, as nlpconnect/vit-gpt2-image-captioning.

`VisionEncoderDecoderModel` of transformers, whose weights and layers are used as they are; only the
attention of the decoder is written anew, with its cache as inputs and outputs of the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.export.captioner.attention import (
    cross_attention,
    image_keys,
    self_attention,
    split_heads,
    token_places,
)

if TYPE_CHECKING:
    from torch import Tensor

    from penstock.export.captioner.attention import KeyValue

ARCHITECTURE = "VisionEncoderDecoderModel"
ENCODERS = ("vit", "deit")
DECODERS = ("gpt2",)


class VitGpt2Graphs:
    """See `penstock.export.captioner.graphs.EncoderDecoder`."""

    def __init__(self, model: Any) -> None:
        text, vision = model.decoder.config, model.encoder.config
        self.model = model
        self.layers: int = text.n_layer
        self.heads: int = text.n_head
        self.head_width: int = text.n_embd // text.n_head
        self.vocabulary: int = text.vocab_size
        self.max_positions: int = text.n_positions
        size = vision.image_size
        height, width = (size, size) if isinstance(size, int) else size
        self.image_size = (int(height), int(width))

    def parts(self) -> dict[str, Any]:
        return {"encoder": self.model.encoder, "decoder": self.model.decoder}

    def encode(self, pixels: Tensor) -> list[KeyValue]:
        image = self.model.encoder(pixel_values=pixels).last_hidden_state
        if hasattr(self.model, "enc_to_dec_proj"):
            image = self.model.enc_to_dec_proj(image)
        made = []
        for block in self._blocks:
            key, value = _conv1d(block.crossattention.c_attn, image).chunk(2, dim=2)
            made.append(image_keys(key, value, self.heads))
        return made

    def decode(
        self, tokens: Tensor, past: list[KeyValue], cross: list[KeyValue]
    ) -> tuple[Tensor, list[KeyValue]]:
        import torch

        gpt2 = self.model.decoder.transformer
        places, later = token_places(tokens, past)
        states = gpt2.wte(tokens) + gpt2.wpe(places.unsqueeze(0))
        present = []
        for block, before, image in zip(self._blocks, past, cross, strict=True):
            attention, look = block.attn, block.crossattention
            parts = _conv1d(attention.c_attn, block.ln_1(states)).chunk(3, dim=2)
            query, key, value = (split_heads(part, self.heads) for part in parts)
            mixed, kept = self_attention(query, key, value, before, later, attention.scaling)
            present.append(kept)
            states = states + _conv1d(attention.c_proj, mixed)
            query = split_heads(_conv1d(look.q_attn, block.ln_cross_attn(states)), self.heads)
            states = states + _conv1d(look.c_proj, cross_attention(query, image, look.scaling))
            wide = block.mlp.act(_conv1d(block.mlp.c_fc, block.ln_2(states)))
            states = states + _conv1d(block.mlp.c_proj, wide)
        # As a Gemm its matrix is the embedding itself, which the file then holds once.
        head = self.model.decoder.lm_head
        nothing = torch.zeros(self.vocabulary)
        return torch.nn.functional.linear(gpt2.ln_f(states[:, -1]), head.weight, nothing), present

    @property
    def _blocks(self) -> Any:
        return self.model.decoder.transformer.h


def _conv1d(layer: Any, states: Tensor) -> Tensor:
    """GPT-2's linear layer as one MatMul, which is what int8 is made for; its own is a Gemm."""
    made: Tensor = states @ layer.weight + layer.bias
    return made
