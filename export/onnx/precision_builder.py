"""ONNX models with a precision for each layer; see `penstock.export.mixed_precision`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from penstock.export.mixed_precision import FLOAT, WeightedLayer
from penstock.export.onnx.int8 import dynamic_int8, static_int8
from penstock.export.onnx.preparation import PreparedModel, without_shapes
from penstock.export.onnx.recipe import OnnxRecipe
from penstock.export.onnx.weight_only import OPERATORS, weight_only
from penstock.quant.observers import ValueRange

BITS = {"int8": 8, "int4": 4}


class OnnxPrecisionBuilder:
    """int8 as the recipe does it (static, dynamic or weights only), int4 weights, or float.

    A layer in int4 computes in floats between layers in int8.
    """

    suffix = ".onnx"

    def __init__(
        self,
        prepared: PreparedModel,
        recipe: OnnxRecipe,
        ranges: Mapping[str, ValueRange] | None = None,
    ) -> None:
        """
        Args:
            prepared: of opset 21 or more, for int4.
            recipe: what int8 is; `static-int8`, `dynamic-int8` or `weight-int8`.
            ranges: of activations, from `calibrate`; for static-int8.
        """
        self.prepared = prepared
        self.recipe = recipe
        self.ranges = ranges
        self._beside = {precision: self._nodes_beside(precision) for precision in BITS}
        self.layers = tuple(
            WeightedLayer(
                layer.name,
                layer.operator,
                layer.parameters,
                {
                    FLOAT: layer.parameters * layer.itemsize,
                    **{
                        precision: self._stored(layer.parameters, layer.channels, precision)
                        for precision in self._offered(layer.operator)
                    },
                },
            )
            for layer in prepared.layers
        )
        weights = {layer.weight: layer.parameters * layer.itemsize for layer in prepared.layers}
        self.fixed_bytes = len(self._content({})) - sum(weights.values())

    def model(self, precisions: Mapping[str, str]) -> Any:
        """An `onnx.ModelProto`; layers that are not named stay float."""
        int4 = {name: "int4" for name, precision in precisions.items() if precision == "int4"}
        int8 = {name for name, precision in precisions.items() if precision == "int8"}
        model = self._int8(int8)
        return weight_only(self.prepared, int4, model) if int4 else model

    def build(self, precisions: Mapping[str, str], out: Path) -> None:
        """Write the model."""
        out.write_bytes(self._content(precisions))

    def _content(self, precisions: Mapping[str, str]) -> bytes:
        return bytes(without_shapes(self.model(precisions)).SerializeToString())

    def _int8(self, layers: Collection[str]) -> Any:
        if self.recipe.kind == "static-int8":
            assert self.ranges is not None
            return static_int8(self.prepared, self.recipe, self.ranges, layers)
        if self.recipe.kind == "dynamic-int8":
            return dynamic_int8(self.prepared, self.recipe, layers)
        return weight_only(self.prepared, dict.fromkeys(layers, "int8"))

    def _offered(self, operator: str) -> list[str]:
        if operator in OPERATORS:
            return ["int8", "int4"]
        return ["int8"] if self.recipe.kind == "dynamic-int8" else []

    def _stored(self, parameters: int, channels: int, precision: str) -> int:
        scales = 1 if precision == "int8" and not self._per_channel else channels
        return parameters * BITS[precision] // 8 + scales * 5 + self._beside[precision]

    @property
    def _per_channel(self) -> bool:
        return self.recipe.per_channel or self.recipe.kind == "weight-int8"

    def _nodes_beside(self, precision: str) -> int:
        """Bytes of the nodes and names that one layer brings, measured over all layers."""
        layers = [
            layer for layer in self.prepared.layers if precision in self._offered(layer.operator)
        ]
        if not layers:
            return 0
        whole = self._content({layer.name: precision for layer in layers})
        added = len(whole) - len(self._content({}))
        for layer in layers:
            scales = 1 if precision == "int8" and not self._per_channel else layer.channels
            added += layer.parameters * layer.itemsize
            added -= layer.parameters * BITS[precision] // 8 + scales * 5
        return max(added // len(layers), 0)
