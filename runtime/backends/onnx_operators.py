"""Which operators of a model onnxruntime does not have: it names only the first."""

from __future__ import annotations

import re
from typing import Any

from penstock.loaders.protobuf import encode
from penstock.loaders.tensor_graph import Operation, TensorGraph

UNKNOWN = re.compile(r"not a registered function|No Op registered for|No opset import for domain")
# 'Could not find an implementation for Conv(11) node with name 'c'': known, but not for this type.
NO_KERNEL = re.compile(r"implementation for (?:[\w.]+[.:])?(\w+)\(\d+\) node")
IR_VERSION = 7
SHOWN_NODES = 3


def missing_operators(ort: Any, graph: TensorGraph, message: str) -> list[str]:
    """What could not be loaded, each with its nodes: \"Foo (node 'a', 'b')\".

    Each operator is asked for alone, in a model of one node.

    Args:
        message: with which onnxruntime refused the model.
    """
    lacking = NO_KERNEL.search(message)
    kinds: dict[str, list[Operation]] = {}
    for operation in graph.operations:
        kinds.setdefault(operation.operator, []).append(operation)
    found = []
    for operator, nodes in kinds.items():
        first = nodes[0]
        if (first.domain, first.kind) in graph.functions:
            continue
        if lacking is not None and lacking[1] == first.kind:
            found.append(f"{operator_with_nodes(operator, nodes)}, for this type")
        elif _is_unknown(ort, first, graph.opsets.get(first.domain, 1)):
            found.append(operator_with_nodes(operator, nodes))
    return found


def operator_with_nodes(operator: str, nodes: list[Operation]) -> str:
    """An operator and the first of its nodes."""
    names = ", ".join(f"'{node.name}'" for node in nodes[:SHOWN_NODES])
    more = f" and {len(nodes) - SHOWN_NODES} more" if len(nodes) > SHOWN_NODES else ""
    return f"{operator} (node {names}{more})"


def _is_unknown(ort: Any, operation: Operation, version: int) -> bool:
    node = encode((2, "y"), (3, "n"), (4, operation.kind), (7, operation.domain))
    graph = encode((1, node), (2, "g"))
    opset = encode((1, operation.domain), (2, version))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(
            encode((1, IR_VERSION), (7, graph), (8, opset)),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # nearly always: the node lacks its inputs
        return UNKNOWN.search(str(error)) is not None
    return False
