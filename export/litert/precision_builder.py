"""TFLite models with a precision for each layer; see `penstock.export.mixed_precision`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penstock.errors import UsageError
from penstock.export.dataset import Dataset
from penstock.export.litert.flatbuffer_model import parse
from penstock.export.litert.flatbuffer_writer import serialize
from penstock.export.litert.input_statistics import InputStatistics, input_statistics
from penstock.export.litert.weight_layers import WeightLayer, float_weights, weight_layers
from penstock.export.litert.weight_quantizer import (
    BITS,
    QuantizedWeights,
    layer_bytes,
    quantize_layer,
    round_floats,
    store_weights,
)
from penstock.export.mixed_precision import FLOAT, WeightedLayer
from penstock.loaders.tensor_graph import TensorGraph


class TflitePrecisionBuilder:
    """int8 and int4 weights, layer by layer, around float arithmetic.

    Offers a precision only where the layer becomes smaller by it: scales and the node that unpacks
    weights cost more than they save in layers of a few hundred weights.
    """

    suffix = ".tflite"

    def __init__(
        self,
        content: bytes,
        graph: TensorGraph,
        calibration: Dataset | None = None,
        *,
        limit: int | None = None,
        threads: int = 1,
        on_sample: Callable[[int, int], None] | None = None,
    ) -> None:
        """
        Args:
            content: the float file, repaired; graph: its structure.
            calibration: what rounding errors are fed back by; None: round to nearest.
            limit: samples of it, at most.

        Raises:
            UsageError, PenstockError: the data does not fit the model; see `input_statistics`.
            FormatError, BackendMissingError.
        """
        self._content = content
        self._name = str(graph.path)
        model = parse(content, self._name)
        self.found = {
            layer.name: layer
            for layer in weight_layers(model)
            if float_weights(model, layer) is not None
        }
        self.layers = tuple(
            WeightedLayer(layer.name, layer.operator, layer.parameters, offered)
            for layer in self.found.values()
            if len(offered := _offered(layer)) > 1
        )
        weights = sum(layer.bytes[FLOAT] for layer in self.layers)
        self.fixed_bytes = len(serialize(model)) - weights
        self.statistics: Mapping[str, InputStatistics] = {}
        if calibration is not None and self.layers:
            self.statistics = input_statistics(
                content,
                graph,
                model,
                [self.found[layer.name] for layer in self.layers],
                calibration,
                limit=limit,
                threads=threads,
                on_sample=on_sample,
            )
        self._made: dict[tuple[str, str, bool], QuantizedWeights] = {}

    @property
    def rounded_to_nearest(self) -> tuple[str, ...]:
        """Layers that calibration data, if there was any, does not help."""
        return tuple(one.name for one in self.layers if one.name not in self.statistics)

    def content(self, precisions: Mapping[str, str]) -> bytes:
        """The file's bytes; layers that are not named stay float.

        Raises:
            UsageError: a layer or a precision is not known, or weights are not finite.
        """
        model = parse(self._content, self._name)
        store_weights(model, self._chosen(model, precisions))
        return serialize(model)

    def rounded_content(self, precisions: Mapping[str, str]) -> bytes:
        """The file in float32, with weights that are rounded already; see `round_floats`.

        Raises:
            UsageError: as `content`.
        """
        model = parse(self._content, self._name)
        round_floats(model, self._chosen(model, precisions, keep_largest=True))
        return serialize(model)

    def _chosen(
        self, model: Any, precisions: Mapping[str, str], keep_largest: bool = False
    ) -> dict[str, QuantizedWeights]:
        return {
            name: self._quantized(model, name, precision, keep_largest)
            for name, precision in precisions.items()
            if precision != FLOAT
        }

    def build(self, precisions: Mapping[str, str], out: Path) -> None:
        """Write the model."""
        out.write_bytes(self.content(precisions))

    def _quantized(
        self, model: Any, name: str, precision: str, keep_largest: bool
    ) -> QuantizedWeights:
        """Each layer is rounded once in each precision."""
        key = name, precision, keep_largest
        if key not in self._made:
            if name not in self.found:
                raise UsageError(f"the model has no float layer '{name}'")
            self._made[key] = quantize_layer(
                model,
                self.found[name],
                precision,
                self.statistics.get(name),
                keep_largest=keep_largest,
            )
        return self._made[key]


def _offered(layer: WeightLayer) -> dict[str, int]:
    whole = layer_bytes(layer, FLOAT)
    smaller = {p: n for p in BITS if (n := layer_bytes(layer, p)) < whole}
    return {FLOAT: whole, **smaller}
