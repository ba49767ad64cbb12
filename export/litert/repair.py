"""What older converters left out of TFLite files, put in before tools that rely on it see them.

Each repair leaves what the model computes as it is. Without them AI Edge Quantizer 0.10 takes a
file whose operator codes stand only in the field of the first schema for one without operators,
changes nothing and reports success; without a signature its calibration raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.export.litert.flatbuffer_model import schema, text
from penstock.loaders.tensor_graph import TensorGraph

SIGNATURE = "serving_default"


def repair(model: Any, graph: TensorGraph) -> tuple[str, ...]:
    """Repair the objects in place; what was done, for people.

    Args:
        graph: the same file, as the strict reader gives it: names and places of its ports.
    """
    done = [
        _operator_codes(model),
        _signature(model, graph),
        _tensor_names(model),
    ]
    return tuple(note for note in done if note)


def _operator_codes(model: Any) -> str:
    """The operator in both fields: readers differ in which they use."""
    moved = 0
    for code in model.operatorCodes:
        builtin = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
        moved += code.builtinCode != builtin
        code.builtinCode = builtin
    count = len(model.operatorCodes)
    if not moved:
        return ""
    return f"repaired {moved} of {count} operator codes, which stood only in the deprecated field"


def _signature(model: Any, graph: TensorGraph) -> str:
    if any(signature.subgraphIndex == 0 for signature in model.signatureDefs or []):
        return ""
    name_signature(
        model,
        SIGNATURE,
        [spec.name for spec in graph.inputs],
        [spec.name for spec in graph.outputs],
    )
    return f"added the missing signature '{SIGNATURE}' with the names of inputs and outputs"


def name_signature(model: Any, key: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the first subgraph one signature, which names its inputs and outputs in their order."""
    generated = schema()
    main = model.subgraphs[0]
    made = generated.SignatureDefT()
    made.signatureKey = key
    made.subgraphIndex = 0
    made.inputs = _tensor_map(main.inputs, inputs)
    made.outputs = _tensor_map(main.outputs, outputs)
    others = [s for s in model.signatureDefs or [] if s.subgraphIndex != 0]
    model.signatureDefs = [made, *others]


def _tensor_map(tensors: Sequence[int], names: Sequence[str]) -> list[Any]:
    entries = []
    for index, name in zip(tensors, names, strict=True):
        entry = schema().TensorMapT()
        entry.name = name
        entry.tensorIndex = int(index)
        entries.append(entry)
    return entries


def _tensor_names(model: Any) -> str:
    """A name of its own for each tensor: quantizers know tensors by name."""
    renamed = 0
    taken: set[str] = set()
    for number, graph in enumerate(model.subgraphs):
        ports = [int(index) for index in (*graph.inputs, *graph.outputs)]
        others = [index for index in range(len(graph.tensors or [])) if index not in set(ports)]
        for index in (*dict.fromkeys(ports), *others):  # ports keep their names
            tensor = graph.tensors[index]
            name = text(tensor.name)
            if name and name not in taken:
                taken.add(name)
                continue
            base = name or f"tensor_{number}_{index}"
            copy = 1
            while (unique := base if not name and copy == 1 else f"{base}#{copy}") in taken:
                copy += 1
            tensor.name = unique
            taken.add(unique)
            renamed += 1
    if not renamed:
        return ""
    return f"renamed {renamed} tensors that had no name, or that of another"
