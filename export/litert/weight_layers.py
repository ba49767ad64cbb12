"""The layers of a TFLite model that have weights, and where in the file those are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.export.litert.flatbuffer_model import (
    buffer_array,
    buffer_users,
    operator_code,
    schema,
)
from penstock.loaders.tflite_operators import operator_name

# The weights' axis of output channels, which each have a scale, and the place of data and bias
# among the operator's inputs; the weights are always input 1.
CHANNEL_AXIS = {
    "CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0,
    "EMBEDDING_LOOKUP": 0,
}  # fmt: skip
DATA_PLACE = {"TRANSPOSE_CONV": 2}
BIAS_PLACE = {"TRANSPOSE_CONV": 3}
WEIGHTS_PLACE = 1


@dataclass(frozen=True)
class WeightLayer:
    """An operator of the file with constant weights.

    Attributes:
        name: `conv_2d_24`: the operator and its number in the subgraph, as viewers show it.
        operator: `CONV_2D`, ...
        subgraph, node: numbers of both in the file.
        data, weights, bias: numbers of tensors in the subgraph; bias None where there is none.
        shape: of the weights.
        axis: of the weights' output channels.
    """

    name: str
    operator: str
    subgraph: int
    node: int
    data: int
    weights: int
    bias: int | None
    shape: tuple[int, ...]
    axis: int

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def parameters(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def rows(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Weights as (output channels, the rest)."""
        return np.moveaxis(weights, self.axis, 0).reshape(self.channels, -1)

    def unrows(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `rows`."""
        shape = list(self.shape)
        shape.insert(0, shape.pop(self.axis))
        return np.moveaxis(rows.reshape(shape), 0, self.axis)


def weight_layers(model: Any) -> tuple[WeightLayer, ...]:
    """Layers with constant weights of any type, in the order of the file.

    Of operators that share a weight tensor the first stands for all.
    """
    found = []
    for number, graph in enumerate(model.subgraphs):
        seen: set[int] = set()
        made_by = {int(out): op for op in graph.operators or [] for out in op.outputs}
        for node, operator in enumerate(graph.operators or []):
            kind = operator_name(operator_code(model, operator))
            if kind not in CHANNEL_AXIS or len(operator.inputs) <= WEIGHTS_PLACE:
                continue
            weights = int(operator.inputs[WEIGHTS_PLACE])
            stored = _stored(model, graph, made_by, weights)
            if weights in seen or stored is None or stored.shape is None:
                continue
            shape = tuple(int(dim) for dim in stored.shape)
            if len(shape) <= CHANNEL_AXIS[kind] or min(shape) < 1:
                continue
            seen.add(weights)
            bias_place = BIAS_PLACE.get(kind, 2)
            bias = int(operator.inputs[bias_place]) if len(operator.inputs) > bias_place else -1
            found.append(
                WeightLayer(
                    name=f"{kind.lower()}_{node}",
                    operator=kind,
                    subgraph=number,
                    node=node,
                    data=int(operator.inputs[DATA_PLACE.get(kind, 0)]),
                    weights=weights,
                    bias=None if bias < 0 else bias,
                    shape=shape,
                    axis=CHANNEL_AXIS[kind],
                )
            )
    return tuple(found)


def float_weights(model: Any, layer: WeightLayer) -> NDArray[np.float32] | None:
    """The layer's weights; None where they are not float32 constants."""
    return buffer_array(model, model.subgraphs[layer.subgraph].tensors[layer.weights])


def stored_types(model: Any) -> list[str]:
    """The number format that each weighted layer's weights are stored in, in the file's order."""
    names = {value: name.lower() for name, value in vars(schema().TensorType).items()
             if isinstance(value, int)}  # fmt: skip
    types = []
    for layer in weight_layers(model):
        graph = model.subgraphs[layer.subgraph]
        made_by = {int(out): op for op in graph.operators for out in op.outputs}
        stored = _stored(model, graph, made_by, layer.weights)
        assert stored is not None  # weight_layers found it the same way
        types.append(names.get(int(stored.type), str(stored.type)))
    return types


def exclusive_tensors(model: Any, subgraph: int) -> set[int]:
    """Tensors that one operator reads, once, and whose buffer no other tensor has."""
    graph = model.subgraphs[subgraph]
    readers = Counter(int(index) for op in graph.operators for index in op.inputs)
    readers.update(int(index) for index in (*graph.inputs, *graph.outputs))
    buffers = Counter(buffer for buffer, _ in buffer_users(model))
    return {
        index
        for index, tensor in enumerate(graph.tensors)
        if readers[index] == 1 and buffers[tensor.buffer] == 1
    }


def _stored(model: Any, graph: Any, made_by: dict[int, Any], index: int) -> Any:
    """The constant tensor that weights are stored in, perhaps behind a DEQUANTIZE; else None."""
    producer = made_by.get(index)
    if producer is not None:
        if operator_name(operator_code(model, producer)) != "DEQUANTIZE":
            return None
        index = int(producer.inputs[0])
    if index < 0:
        return None
    tensor = graph.tensors[index]
    data = model.buffers[tensor.buffer].data if tensor.buffer else None
    return None if data is None or len(data) == 0 else tensor
