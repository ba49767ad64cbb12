"""`penstock inspect` of an ONNX or TFLite file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cli.console import emit_json, print_facts, print_table, size
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.loaders.tensor_graph import Quantization, TensorGraph, TensorSpec

NAMES = {"onnx": "ONNX", "tflite": "TFLite"}


def inspect_tensors(file: Path, *, verify: bool, tensors: bool, as_json: bool) -> None:
    """Print what the file holds; it is checked on the way."""
    from penstock.runtime.backends.open_model import read_graph

    graph = read_graph(file)
    if verify:
        raise UsageError(f"{file}: {NAMES[graph.format]} files carry no checksums to verify")
    if as_json:
        emit_json(graph.to_dict(weights=tensors))
        return
    _print_graph(graph)
    if tensors:
        _print_weights(graph)


def _print_graph(graph: TensorGraph) -> None:
    beside = f", with {len(graph.external)} files of weights" if graph.external else ""
    print_facts(
        [
            ("file", str(graph.path)),
            ("size", size(graph.size) + beside),
            ("format", f"{NAMES[graph.format]}, {graph.version}"),
            ("made by", graph.producer or "not named"),
            ("weights", f"{len(graph.weights)} tensors, {graph.parameters} parameters"),
        ]
    )
    _print_specs("input", graph.inputs)
    _print_specs("output", graph.outputs)
    print_table(["operator", ">nodes"], [(name, str(n)) for name, n in graph.operators.items()])


def _print_specs(title: str, specs: Sequence[TensorSpec]) -> None:
    from penstock.loaders.tensor_graph import shape_text

    rows = [(s.name, s.dtype, shape_text(s.shape), _scale(s.quantization)) for s in specs]
    quantized = any(row[3] for row in rows)
    columns = [title, "type", "shape", *(["stands for"] if quantized else [])]
    print_table(columns, [row[: len(columns)] for row in rows])


def _scale(quantization: Quantization | None) -> str:
    if quantization is None:
        return ""
    if quantization.axis is not None:
        return f"{len(quantization.scales)} scales along dimension {quantization.axis}"
    scale, zero = quantization.scales[0], quantization.zero_points[0]
    return f"{scale:.6g} * (value {'-' if zero >= 0 else '+'} {abs(zero)})"


def _print_weights(graph: TensorGraph) -> None:
    from penstock.loaders.tensor_graph import shape_text

    print_table(
        ["tensor", "type", "shape", ">bytes", "in"],
        [
            (w.name, w.dtype, shape_text(w.shape), str(w.nbytes), w.external or "the file")
            for w in graph.weights
        ],
    )
