"""Stores the weights of a TFLite model in 8 or 4 bits, layer by layer; computes with floats.

    constant int8 or int4, a scale a channel  ->  DEQUANTIZE  ->  the operator, in float32

Activations are not quantized, so nothing but the weights' rounding is lost, and any operator can
have it. LiteRT unpacks int8 weights once, when it loads the model; int4 weights take its slower
kernels. With calibration data, rounding errors are fed back (`penstock.quant.error_feedback`) and
what they still add to the mean of each output channel is taken from the bias: the mean error of a
channel is the same for every input, and the next layers are hurt by it most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.export.litert.flatbuffer_model import (
    add_buffer,
    add_operator_code,
    buffer_array,
    schema,
)
from penstock.export.litert.input_statistics import InputStatistics
from penstock.export.litert.weight_layers import (
    WeightLayer,
    exclusive_tensors,
    float_weights,
    weight_layers,
)
from penstock.quant.error_feedback import quantize_rows

BITS = {"int8": 8, "int4": 4}
DEQUANTIZE, SCHEMA_TYPE = 6, {"int8": 9, "int4": 17}
DEQUANTIZE_VERSION = {"int8": 5, "int4": 6}  # the first with scales along an axis, and with int4
# A tensor, its quantization and a DEQUANTIZE node in the file, beside scales and zero points.
OVERHEAD_BYTES = 250


@dataclass(frozen=True)
class QuantizedWeights:
    """One layer in a precision.

    Attributes:
        precision: `int8` or `int4`.
        scales: of each output channel; levels: as the weights' shape, int8.
        bias_shift: to add to the bias, (channels,); None without statistics or without bias.
    """

    precision: str
    scales: NDArray[np.float32]
    levels: NDArray[np.int8]
    bias_shift: NDArray[np.float32] | None


def quantize_layer(
    model: Any,
    layer: WeightLayer,
    precision: str,
    statistics: InputStatistics | None,
    *,
    keep_largest: bool = False,
) -> QuantizedWeights:
    """Round a layer's weights; the objects stay as they are.

    Args:
        statistics: of its inputs; None: every weight to its nearest level.
        keep_largest: for `round_floats`; see `quantize_rows`.

    Raises:
        UsageError: the precision is not known, or the weights are not finite float32 numbers.
    """
    if precision not in BITS:
        raise UsageError(f"precision '{precision}' is not known; expected {', '.join(BITS)}")
    weights = float_weights(model, layer)
    if weights is None:
        raise UsageError(f"{layer.name}: its weights are not float32; it is quantized already")
    rows = layer.rows(weights)
    if not np.isfinite(rows).all():
        raise UsageError(f"{layer.name}: its weights have NaN or infinity, and cannot be quantized")
    if statistics is None:
        scales, levels = quantize_rows(rows, BITS[precision])
        return QuantizedWeights(precision, scales, layer.unrows(levels), None)
    # A bias that can be shifted takes up the mean error; then only the variance is kept small.
    shifted = _bias(model, layer) is not None
    moments = statistics.covariance if shifted else statistics.moments
    scales, levels = quantize_rows(rows, BITS[precision], moments, keep_largest=keep_largest)
    errors = rows.astype(np.float64) - levels * scales[:, None].astype(np.float64)
    shift = (errors * statistics.mean).sum(axis=1).astype(np.float32) if shifted else None
    return QuantizedWeights(precision, scales, layer.unrows(levels), shift)


def store_weights(model: Any, made: Mapping[str, QuantizedWeights]) -> None:
    """Put quantized weights into the objects, in place; by name of the layer.

    Raises:
        UsageError: the model has no layer of a name.
    """
    layers = _named_layers(model, made)
    exclusive = {n: exclusive_tensors(model, n) for n in range(len(model.subgraphs))}
    for name, weights in made.items():  # before nodes and tensors change who uses what
        _shift_bias(model, layers[name], weights)
    nodes: dict[tuple[int, int], Any] = {}
    for name, weights in made.items():
        layer = layers[name]
        alone = layer.weights in exclusive[layer.subgraph]
        nodes[layer.subgraph, layer.node] = _store(model, layer, weights, alone)
    for number, graph in enumerate(model.subgraphs):
        graph.operators = [
            operator
            for node, at in enumerate(graph.operators or [])
            for operator in ([nodes[number, node]] if (number, node) in nodes else []) + [at]
        ]


def round_floats(model: Any, made: Mapping[str, QuantizedWeights]) -> None:
    """Leave the layers float, with the values that quantized weights stand for, in place.

    A quantizer that rounds them to nearest, a scale a channel, finds the levels that were chosen.

    Raises:
        UsageError: the model has no layer of a name.
    """
    layers = _named_layers(model, made)
    exclusive = {n: exclusive_tensors(model, n) for n in range(len(model.subgraphs))}
    for name, weights in made.items():
        layer = layers[name]
        if layer.weights not in exclusive[layer.subgraph]:
            continue  # others use the same numbers
        _shift_bias(model, layer, weights)
        rows = layer.rows(weights.levels) * weights.scales[:, None]
        values = np.ascontiguousarray(layer.unrows(rows), np.float32)
        tensor = model.subgraphs[layer.subgraph].tensors[layer.weights]
        model.buffers[tensor.buffer].data = values.ravel().view(np.uint8)


def pack_int4(levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two levels a byte, the first in the low half; an odd last one is followed by 0."""
    halves = levels.ravel().view(np.uint8) & 0x0F
    if halves.size % 2:
        halves = np.append(halves, np.uint8(0))
    return (halves[::2] | (halves[1::2] << 4)).astype(np.uint8)


def layer_bytes(layer: WeightLayer, precision: str) -> int:
    """About what a layer's weights take in the file, with scales and the nodes that unpack them.

    Zero points are stored once for all layers of as many channels, and are not counted.
    """
    if precision not in BITS:
        return 4 * layer.parameters
    weights = (layer.parameters * BITS[precision] + 7) // 8
    return weights + 4 * layer.channels + OVERHEAD_BYTES


def _named_layers(model: Any, made: Mapping[str, QuantizedWeights]) -> dict[str, WeightLayer]:
    layers = {layer.name: layer for layer in weight_layers(model)}
    unknown = [name for name in made if name not in layers]
    if unknown:
        raise UsageError(f"the model has no layer '{unknown[0]}'; it has {', '.join(layers)}")
    return layers


def _shift_bias(model: Any, layer: WeightLayer, weights: QuantizedWeights) -> None:
    bias = _bias(model, layer)
    if bias is not None and weights.bias_shift is not None:
        tensor = model.subgraphs[layer.subgraph].tensors[layer.bias]
        model.buffers[tensor.buffer].data = (bias + weights.bias_shift).view(np.uint8)


def _bias(model: Any, layer: WeightLayer) -> NDArray[np.float32] | None:
    """The layer's bias; None where it has none, or where others use it or the weights too."""
    if layer.bias is None:
        return None
    if not {layer.weights, layer.bias} <= exclusive_tensors(model, layer.subgraph):
        return None
    bias = buffer_array(model, model.subgraphs[layer.subgraph].tensors[layer.bias])
    return bias if bias is not None and bias.shape == (layer.channels,) else None


def _store(model: Any, layer: WeightLayer, made: QuantizedWeights, alone: bool) -> Any:
    """A new constant tensor; the old one becomes what a DEQUANTIZE node, returned, makes of it.

    Args:
        alone: whether nothing else has the weights' buffer.
    """
    generated = schema()
    graph = model.subgraphs[layer.subgraph]
    old = graph.tensors[layer.weights]
    flat = np.ascontiguousarray(made.levels).ravel().view(np.uint8)
    data = pack_int4(made.levels) if made.precision == "int4" else flat
    quantization = generated.QuantizationParametersT()
    quantization.scale = made.scales
    quantization.zeroPoint = np.zeros(layer.channels, np.int64)
    quantization.quantizedDimension = layer.axis
    stored = generated.TensorT()
    stored.shape, stored.type = old.shape, SCHEMA_TYPE[made.precision]
    stored.name, stored.quantization = old.name, quantization
    if alone:
        stored.buffer = old.buffer
        model.buffers[old.buffer].data = data
    else:
        stored.buffer = add_buffer(model, data)
    graph.tensors.append(stored)
    old.buffer, old.quantization = 0, None
    old.name = f"{layer.name}/float"  # short: names are a good part of a small file
    node = generated.OperatorT()
    node.opcodeIndex = add_operator_code(model, DEQUANTIZE, DEQUANTIZE_VERSION[made.precision])
    node.inputs, node.outputs = [len(graph.tensors) - 1], [layer.weights]
    node.builtinOptionsType = generated.BuiltinOptions.DequantizeOptions
    node.builtinOptions = generated.DequantizeOptionsT()
    return node
