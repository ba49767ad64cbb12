"""BLIP (Li et al., arXiv 2201.12086): a vision transformer, and a BERT that looks at it.

`BlipForConditionalGeneration` of transformers, whose weights and layers are used as they are; only
the attention of the decoder is written anew, with its cache as inputs and outputs of the graph.
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

ARCHITECTURE = "BlipForConditionalGeneration"
PROMPT = "a picture of"  # that the published checkpoints were fine-tuned with


class BlipGraphs:
    """See `penstock.export.captioner.graphs.EncoderDecoder`."""

    def __init__(self, model: Any) -> None:
        text = model.config.text_config
        self.model = model
        self.layers: int = text.num_hidden_layers
        self.heads: int = text.num_attention_heads
        self.head_width: int = text.hidden_size // text.num_attention_heads
        self.vocabulary: int = text.vocab_size
        self.max_positions: int = text.max_position_embeddings
        side = int(model.config.vision_config.image_size)
        self.image_size = (side, side)
        self._scale = self.head_width**-0.5

    def parts(self) -> dict[str, Any]:
        return {"encoder": self.model.vision_model, "decoder": self.model.text_decoder}

    def encode(self, pixels: Tensor) -> list[KeyValue]:
        image = self.model.vision_model(pixel_values=pixels).last_hidden_state
        looks = [layer.crossattention.self for layer in self._bert.encoder.layer]
        return [image_keys(look.key(image), look.value(image), self.heads) for look in looks]

    def decode(
        self, tokens: Tensor, past: list[KeyValue], cross: list[KeyValue]
    ) -> tuple[Tensor, list[KeyValue]]:
        places, later = token_places(tokens, past)
        states = self._bert.embeddings(tokens, position_ids=places.unsqueeze(0))
        present = []
        for layer, before, image in zip(self._bert.encoder.layer, past, cross, strict=True):
            attention = layer.attention.self
            query, key, value = (
                split_heads(project(states), self.heads)
                for project in (attention.query, attention.key, attention.value)
            )
            mixed, kept = self_attention(query, key, value, before, later, self._scale)
            present.append(kept)
            states = layer.attention.output(mixed, states)
            query = split_heads(layer.crossattention.self.query(states), self.heads)
            mixed = cross_attention(query, image, self._scale)
            states = layer.crossattention.output(mixed, states)
            states = layer.output(layer.intermediate(states), states)
        return self.model.text_decoder.cls(states[:, -1]), present

    @property
    def _bert(self) -> Any:
        return self.model.text_decoder.bert
