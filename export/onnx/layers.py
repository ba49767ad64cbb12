"""The layers of an ONNX graph that have weights, and the number format of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0, "LSTM": 1}
"""Operators with weights: which input they are."""
FLOATS = {1, 10}  # TensorProto.FLOAT, FLOAT16
FORMATS = {2: "int8", 3: "int8", 21: "int4", 22: "int4"}  # of TensorProto.DataType
INTEGER_OPERATORS = {
    "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM", "QLinearConv", "QLinearMatMul", "QGemm", "QAttention",
}  # fmt: skip
AS_MATMUL = "_MatMul"
"""What the library puts behind the name of a Gemm that it makes a MatMul and an Add."""
_SUFFIXES = ("_quant", "_Q4", "_Q8", "_matmul")  # and behind that of a node it replaces
_MIN_EMBEDDING = 2  # dimensions: a Gather from a table, not from a shape


@dataclass(frozen=True)
class Layer:
    """A node with constant float weights.

    Attributes:
        name: of the node.
        weight: name of its initializer.
        shape: of the weight.
        axis: of the output channels in it.
        itemsize: bytes of one number.
    """

    name: str
    operator: str
    weight: str
    shape: tuple[int, ...]
    axis: int
    itemsize: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        return self.shape[self.axis]


def weighted_layers(graph: Any) -> tuple[Layer, ...]:
    """Of the main graph, in order; a graph inside of a node is left alone by every recipe."""
    weights = {w.name: w for w in graph.initializer if w.data_type in FLOATS}
    found = []
    for node in graph.node:
        place = WEIGHT_INPUT.get(node.op_type)
        if place is None or node.domain not in ("", "ai.onnx") or len(node.input) <= place:
            continue
        weight = weights.get(node.input[place])
        if weight is None or len(weight.dims) < _MIN_EMBEDDING:
            continue
        shape = tuple(weight.dims)
        itemsize = 4 if weight.data_type == 1 else 2
        found.append(
            Layer(node.name, node.op_type, weight.name, shape, _axis(node, len(shape)), itemsize)
        )
    return tuple(found)


def layer_formats(graph: Any, layers: tuple[Layer, ...]) -> dict[str, str]:
    """The number format of each layer's weights in a graph that was made from theirs.

    Returns:
        'int8', 'int4' or 'float' by the layer's name; 'float' also where the node is gone.
    """
    formats = {_source_name(name): kind for name, kind in _quantized_nodes(graph)}
    return {layer.name: formats.get(layer.name, "float") for layer in layers}


def _quantized_nodes(graph: Any) -> Iterator[tuple[str, str]]:
    initializers = {tensor.name: tensor.data_type for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            bits = next(a.i for a in node.attribute if a.name == "bits")
            yield node.name, f"int{bits}"
        elif node.op_type in INTEGER_OPERATORS:
            yield node.name, "int8"
        elif node.op_type in WEIGHT_INPUT:
            place = WEIGHT_INPUT[node.op_type]
            name = node.input[place] if len(node.input) > place else ""
            while name in producers and producers[name].op_type in (
                "DequantizeLinear", "Transpose", "Reshape",
            ):  # fmt: skip
                name = producers[name].input[0]
            kind = FORMATS.get(initializers.get(name, 0))
            if kind is not None:
                yield node.name, kind


def _source_name(name: str) -> str:
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name.removesuffix(AS_MATMUL)


def _axis(node: Any, dimensions: int) -> int:
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    if node.op_type == "MatMul":
        return dimensions - 1
    if node.op_type == "LSTM":
        return 1
    return 0
