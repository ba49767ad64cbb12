"""Weights in int8 or int4 with a scale for each output channel; activations stay float.

onnxruntime has this for MatMul only (`block_weights`); a DequantizeLinear before the weight does it
for every operator. A scale is the one of least squared error among some: for int4, clipping the
largest weight often costs less than a coarse step for all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.export.onnx.int8 import copied
from penstock.export.onnx.layers import Layer
from penstock.export.onnx.libraries import onnx_library
from penstock.export.onnx.preparation import PreparedModel

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Not Gather: all of a table would be unpacked in every run."""
LARGEST = {"int8": 127, "int4": 7}
CLIPS = np.linspace(0.55, 1.0, 19)
"""Shares of a channel's largest magnitude that are tried as the end of the range."""


def weight_only(prepared: PreparedModel, precisions: Mapping[str, str], model: Any = None) -> Any:
    """A copy with these layers' weights as integers; `int4` needs opset 21.

    Args:
        precisions: 'int8' or 'int4' by the layer's name.
        model: to write into, instead of a copy; its layers must still have their float weights.
    """
    model = copied(prepared.model) if model is None else model
    layers = {layer.name: layer for layer in prepared.layers}
    made: dict[tuple[str, str, int], str] = {}  # a weight that two layers share is stored once
    nodes: list[Any] = []
    for node in model.graph.node:
        precision = precisions.get(node.name)
        if precision is not None:
            layer = layers[node.name]
            key = (layer.weight, precision, layer.axis)
            if key not in made:
                made[key] = _add_weight(model, layer, precision, nodes)
            place = list(node.input).index(layer.weight)
            node.input[place] = made[key]
    first = [*nodes, *model.graph.node]  # what makes the weights comes first
    del model.graph.node[:]
    model.graph.node.extend(first)
    _drop_unused(model)
    return model


def quantize_channels(
    weight: NDArray[np.float32], axis: int, precision: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers of the weight's shape and a scale for each index along `axis`."""
    largest = LARGEST[precision]
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    peak = np.abs(rows).max(axis=1, initial=0)
    best = np.full(len(rows), np.inf)
    scales = np.ones(len(rows), np.float32)
    for clip in CLIPS if precision == "int4" else CLIPS[-1:]:
        scale = (peak * np.float32(clip) / largest).astype(np.float32)
        scale[scale < np.finfo(np.float32).tiny] = 1
        error = ((_round(rows, scale, largest) * scale[:, None] - rows) ** 2).sum(axis=1)
        better = error < best
        best[better], scales[better] = error[better], scale[better]
    shape = [1] * weight.ndim
    shape[axis] = -1
    integers = np.clip(np.rint(weight / scales.reshape(shape)), -largest, largest)
    return integers.astype(np.int8), scales


def _round(
    rows: NDArray[np.float32], scale: NDArray[np.float32], largest: int
) -> NDArray[np.float32]:
    return np.asarray(np.clip(np.rint(rows / scale[:, None]), -largest, largest), np.float32)


def _add_weight(model: Any, layer: Layer, precision: str, nodes: list[Any]) -> str:
    """Add what gives the weight; returns its name."""
    onnx = onnx_library()
    helper = onnx.helper
    tensor = next(t for t in model.graph.initializer if t.name == layer.weight)
    weight = onnx.numpy_helper.to_array(tensor)
    integers, scales = quantize_channels(weight.astype(np.float32), layer.axis, precision)
    name = f"{layer.weight}_{precision}" + (f"_{layer.axis}" if layer.axis else "")
    stored = {"int8": onnx.TensorProto.INT8, "int4": onnx.TensorProto.INT4}[precision]
    raw = integers.tobytes() if precision == "int8" else pack_int4(integers)
    model.graph.initializer.extend([
        helper.make_tensor(name, stored, weight.shape, raw, raw=True),
        onnx.numpy_helper.from_array(scales.astype(weight.dtype), f"{name}_scale"),
    ])  # fmt: skip
    nodes.append(
        helper.make_node(
            "DequantizeLinear",
            [name, f"{name}_scale"],
            [f"{name}_float"],
            name=f"{name}_dequantize",
            axis=layer.axis,
        )
    )
    return f"{name}_float"


def pack_int4(integers: NDArray[np.int8]) -> bytes:
    """Two to a byte, the first in the low half, as ONNX stores them."""
    flat = integers.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.int8(0))
    halves = (flat & 0x0F).astype(np.uint8)
    return bytes((halves[0::2] | (halves[1::2] << 4)).tobytes())


def _drop_unused(model: Any) -> None:
    """Float weights that nothing uses any more."""
    from penstock.export.onnx.preparation import walk_nodes

    used = {name for node in walk_nodes(model.graph) for name in node.input}
    used |= {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
