"""The two graphs of an encoder-decoder captioner.

    encoder   pixels [1, 3, S, S]
              -> cross_key.L [H, D, P], cross_value.L [H, P, D]     of each decoder layer L
    decoder   tokens [B, N], parents [B], past_key.L, past_value.L [R, H, T, D], cross_key.L, ...
              -> logits [B, vocabulary] after the last token, key.L, value.L [B, H, T + N, D]

B beams continue the rows `parents` of the R rows before, so that reordering a beam search costs no
copy outside the graph. One decoder graph serves the prompt (T = 0) and every step after it; the
image's keys and values are computed once a photo and shared by all beams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from penstock.errors import UnsupportedModelError
from penstock.export.onnx.libraries import quiet_libraries

if TYPE_CHECKING:
    from torch import Tensor

    from penstock.export.captioner.attention import KeyValue

OPSET = 18
LIMIT = (1 << 31) - (1 << 20)  # bytes of a graph with its weights: protobuf's limit
EXAMPLE_BEAMS, EXAMPLE_ROWS, EXAMPLE_NEW, EXAMPLE_PAST = 2, 3, 4, 5  # all different, none 0 or 1


class EncoderDecoder(Protocol):
    """What an architecture gives: its sizes, and its mathematics on torch tensors."""

    model: Any
    layers: int
    heads: int
    head_width: int
    vocabulary: int
    max_positions: int
    image_size: tuple[int, int]

    def parts(self) -> dict[str, Any]:
        """The modules `encoder` and `decoder`."""
        ...

    def encode(self, pixels: Tensor) -> list[KeyValue]:
        """Pixels (1, 3, height, width) to each decoder layer's keys and values of the image."""
        ...

    def decode(
        self, tokens: Tensor, past: list[KeyValue], cross: list[KeyValue]
    ) -> tuple[Tensor, list[KeyValue]]:
        """Tokens (B, N) to logits (B, vocabulary) after the last one, and keys and values."""
        ...


@dataclass(frozen=True)
class Graphs:
    """ONNX models, serialized."""

    encoder: bytes
    decoder: bytes

    @property
    def nbytes(self) -> int:
        """Of both."""
        return len(self.encoder) + len(self.decoder)


def export_graphs(source: EncoderDecoder) -> Graphs:
    """Both graphs in float32.

    Raises:
        UnsupportedModelError: the weights of one are more than an ONNX file without others holds.
    """
    for part, module in source.parts().items():
        nbytes = sum(4 * parameter.numel() for parameter in module.parameters())
        if nbytes > LIMIT:
            raise UnsupportedModelError(
                f"the {part} has {nbytes / 2**30:.1f} GiB of weights in float32, expected at most "
                "2 GiB, which is what an ONNX file holds: a captioner this large is not exported"
            )
    return Graphs(_export_encoder(source), _export_decoder(source))


def layer_names(layers: int, key: str, value: str) -> list[str]:
    """`key.0`, `value.0`, `key.1`, ..."""
    return [f"{kind}.{layer}" for layer in range(layers) for kind in (key, value)]


def _export_encoder(source: EncoderDecoder) -> bytes:
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = source.model

        def forward(self, pixels: Tensor) -> list[Tensor]:
            return [part for pair in source.encode(pixels) for part in pair]

    example = torch.zeros(1, 3, *source.image_size)
    outputs = layer_names(source.layers, "cross_key", "cross_value")
    return to_onnx(Encoder(), (example,), ["pixels"], outputs, None)


def _export_decoder(source: EncoderDecoder) -> bytes:
    import torch
    from torch.export import Dim

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = source.model

        def forward(
            self, tokens: Tensor, parents: Tensor, past: list[Tensor], cross: list[Tensor]
        ) -> list[Tensor]:
            chosen = [part.index_select(0, parents) for part in past]
            logits, present = source.decode(tokens, _pairs(chosen), _pairs(cross))
            return [logits, *(part for pair in present for part in pair)]

    with torch.no_grad():
        seen = source.encode(torch.zeros(1, 3, *source.image_size))
    cross = [part for pair in seen for part in pair]
    past = [
        torch.zeros(EXAMPLE_ROWS, source.heads, EXAMPLE_PAST, source.head_width)
        for _ in range(2 * source.layers)
    ]
    tokens = torch.zeros(EXAMPLE_BEAMS, EXAMPLE_NEW, dtype=torch.int64)
    parents = torch.zeros(EXAMPLE_BEAMS, dtype=torch.int64)
    beams, new = Dim("beams"), Dim("new")
    shapes = {
        "tokens": {0: beams, 1: new},
        "parents": {0: beams},
        "past": [{0: Dim("rows"), 2: Dim("past")} for _ in past],
        "cross": [{} for _ in cross],
    }
    inputs = [
        "tokens",
        "parents",
        *layer_names(source.layers, "past_key", "past_value"),
        *layer_names(source.layers, "cross_key", "cross_value"),
    ]
    outputs = ["logits", *layer_names(source.layers, "key", "value")]
    return to_onnx(Decoder(), (tokens, parents, past, cross), inputs, outputs, shapes)


def to_onnx(
    module: Any, example: tuple[Any, ...], inputs: list[str], outputs: list[str], shapes: Any
) -> bytes:
    """A torch module as an ONNX model, serialized; `shapes` as `torch.export` takes them."""
    import torch

    with quiet_libraries(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model.graph)
    made: bytes = model.SerializeToString()
    return made


def _strip(graph: Any) -> None:
    """Leave out where in the source each node comes from: half a small model's bytes."""
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    del graph.metadata_props[:]


def _pairs(parts: list[Tensor]) -> list[KeyValue]:
    return list(zip(parts[::2], parts[1::2], strict=True))
