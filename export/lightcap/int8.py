"""The graphs of a LightCap captioner in int8.

encoder                      static: ranges of activations from photos, `ENCODER_RECIPES`
concepts, prefix, decoder    dynamic: activations are scaled in every run; embeddings by row
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.export.captioner.int8 import quantize_graph
from penstock.export.dataset import Sample
from penstock.export.lightcap.graphs import LightCapGraphs
from penstock.export.onnx.calibration import calibrate
from penstock.export.onnx.int8 import static_int8
from penstock.export.onnx.layers import layer_formats
from penstock.export.onnx.preparation import prepare_model, without_shapes
from penstock.export.onnx.recipe import parse_recipe

# Signed weights are the faster ones, in 7 bits they overflow nowhere. MobileNetV2 was trained on
# unsigned 8-bit weights with one scale, and loses where it leaves that grid.
ENCODER_RECIPES = {
    "mobilenet-v2": "static-int8 percentile=99.999 uint8-weights",
    "small-resnet": "static-int8 percentile=99.999 per-channel reduce-range",
    "clip-resnet50": "static-int8 percentile=99.999 per-channel reduce-range",
}


@dataclass(frozen=True)
class Pixels:
    """Photos as the encoder takes them; see `penstock.export.dataset.Dataset`.

    Attributes:
        photos: name and input [1, 3, side, side] of each.
    """

    name: str
    photos: Sequence[tuple[str, NDArray[np.float32]]]
    labels: None = None

    def __len__(self) -> int:
        return len(self.photos)

    def samples(self, limit: int | None = None) -> Iterator[Sample]:
        """In order."""
        for name, pixels in self.photos[:limit]:
            yield Sample(name, {"pixels": pixels})


def quantize_graphs(
    graphs: LightCapGraphs, pixels: Pixels, recipe: str, threads: int
) -> tuple[LightCapGraphs, dict[str, str]]:
    """All four graphs with int8 weights, and the precision of each weight by its name.

    Args:
        pixels: photos that the ranges of the encoder's activations come from.
        recipe: of the encoder, see `penstock.export.onnx.recipe`.

    Raises:
        UsageError: there are no photos, or one makes NaN.
        BackendMissingError: onnx or onnxruntime is not installed.
    """
    encoder, precisions = _encoder(graphs.encoder, pixels, recipe, threads)
    made = {"encoder": encoder}
    precisions = {f"encoder/{name}": kind for name, kind in precisions.items()}
    for name in ("concepts", "prefix", "decoder"):
        made[name], kinds = quantize_graph(getattr(graphs, name))
        precisions |= {f"{name}/{weight}": kind for weight, kind in kinds.items()}
    return LightCapGraphs(**made), precisions


def _encoder(
    data: bytes, pixels: Pixels, recipe: str, threads: int
) -> tuple[bytes, dict[str, str]]:
    parsed = parse_recipe(recipe)
    with tempfile.TemporaryDirectory(prefix="penstock-lightcap-") as folder:
        source = Path(folder) / "encoder.onnx"
        source.write_bytes(data)
        prepared = prepare_model(source)
        ranges = calibrate(prepared, pixels, parsed, threads=threads)
        model = static_int8(prepared, parsed, ranges)
    formats = layer_formats(model.graph, prepared.layers)
    kinds = {name: "float32" if kind == "float" else kind for name, kind in formats.items()}
    made: bytes = without_shapes(model).SerializeToString()
    return made, kinds
