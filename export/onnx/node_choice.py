"""Which operators without weights are quantized along with the layers.

An operator that lies between quantized layers works on the same integers: Relu, Concat, Add. What
comes before the first layer or after the last one stays float: there is nothing to save, and much
to lose (the decoding of boxes multiplies and exponentiates what was rounded).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from penstock.export.onnx.layers import Layer

KEPT_FLOAT = frozenset({"Softmax", "LayerNormalization", "InstanceNormalization", "Exp", "Sigmoid"})
"""Sums and exponents: 8 bits of them are too few."""


def nodes_to_quantize(
    graph: Any, layers: Collection[Layer], quantized: Collection[str]
) -> list[str]:
    """Names of the quantized layers and of the operators between them."""
    names = {layer.name for layer in layers}
    above = _layers_above(graph, names)
    before_a_layer = _leads_to_a_layer(graph, names)
    chosen = []
    for node in graph.node:
        if node.name in names:
            if node.name in quantized:
                chosen.append(node.name)
        elif node.op_type not in KEPT_FLOAT and node.name in before_a_layer:
            from_layers = above[node.name]
            if from_layers and from_layers <= set(quantized):
                chosen.append(node.name)
    return chosen


def _layers_above(graph: Any, names: Collection[str]) -> dict[str, set[str]]:
    """Of each node: the layers that its inputs come from, with no other layer between."""
    of_tensor: dict[str, set[str]] = {}
    above = {}
    for node in graph.node:
        found: set[str] = set()
        for name in node.input:
            found |= of_tensor.get(name, set())
        above[node.name] = found
        for name in node.output:
            of_tensor[name] = {node.name} if node.name in names else found
    return above


def _leads_to_a_layer(graph: Any, names: Collection[str]) -> set[str]:
    wanted: set[str] = set()  # tensors that a layer is computed from
    found = set()
    for node in reversed(graph.node):
        if node.name in names or any(name in wanted for name in node.output):
            found.add(node.name)
            wanted.update(node.input)
    return found
