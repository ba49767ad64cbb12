"""The graphs of a captioner in int8.

Matrices: onnxruntime's dynamic quantization, weights int8 with one scale a column, activations
uint8 with one scale a call. Attention scores have no weights and stay float, the convolution that
cuts the photo into patches too: onnxruntime's integer convolution is slower than its float one.

Embeddings: int8 with one scale a row, only the rows asked for become float. Where the embedding is
also the output matrix, as in BERT and GPT-2, both read one array.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.export.captioner.graphs import Graphs
from penstock.export.onnx.libraries import onnx_library, quantization, quiet_libraries

INT8_COLUMNS, INT8_ROWS = "int8 per column", "int8 per row"
LEAST_EMBEDDING = 1 << 11  # numbers in a table worth the extra nodes
HEAD = ".head"  # after the name of an embedding: the same numbers as an output matrix


@dataclass(frozen=True)
class Int8Graphs:
    """Quantized graphs, and the precision of each weight matrix by its name."""

    graphs: Graphs
    precisions: dict[str, str]

    @property
    def changed(self) -> int:
        """Matrices and tables that are int8 now."""
        return sum(precision != "float32" for precision in self.precisions.values())


def quantize_graphs(graphs: Graphs) -> Int8Graphs:
    """Both graphs with int8 weights.

    Raises:
        BackendMissingError: onnx or onnxruntime is not installed.
    """
    encoder, encoder_precisions = quantize_graph(graphs.encoder)
    decoder, decoder_precisions = quantize_graph(graphs.decoder)
    precisions = {f"encoder/{name}": kind for name, kind in encoder_precisions.items()}
    precisions |= {f"decoder/{name}": kind for name, kind in decoder_precisions.items()}
    return Int8Graphs(Graphs(encoder, decoder), precisions)


def quantize_graph(data: bytes) -> tuple[bytes, dict[str, str]]:
    """One graph with int8 matrices and tables, and the precision of each weight by its name."""
    onnx, tools = onnx_library(), quantization()
    model = onnx.load_from_string(data)
    _fold_transposes(onnx, model.graph)
    _plain_matmuls(onnx, model.graph)
    names = _matrices(model.graph)
    with tempfile.TemporaryDirectory(prefix="penstock-int8-") as folder, quiet_libraries():
        out = Path(folder) / "int8.onnx"
        tools.quantize_dynamic(
            model,
            out,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=tools.QuantType.QInt8,
        )
        model = onnx.load(out)
    precisions = _int8_embeddings(onnx, model.graph)
    stored = {tensor.name for tensor in model.graph.initializer}
    for name in names:
        done = f"{name}_quantized" in stored
        precisions[name] = INT8_COLUMNS if done else "float32"
    for node in model.graph.node:
        if node.op_type == "Conv":
            precisions[node.input[1]] = "float32"
    return model.SerializeToString(), precisions


def _fold_transposes(onnx: Any, graph: Any) -> None:
    """Constant matrices that the graph transposes as what they become: only those get int8."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    folded, nodes = {}, []
    for node in graph.node:
        table = weights.get(node.input[0]) if node.op_type == "Transpose" else None
        if table is None or len(table.dims) != 2 or table.data_type != onnx.TensorProto.FLOAT:
            nodes.append(node)
            continue
        name = node.input[0] + HEAD
        matrix = np.ascontiguousarray(onnx.numpy_helper.to_array(table).T)
        weights[name] = onnx.numpy_helper.from_array(matrix, name)
        folded[node.output[0]] = name
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = folded.get(name, name)
    _replace(graph, nodes, weights)


def _plain_matmuls(onnx: Any, graph: Any) -> None:
    """Gemm nodes with constant matrices as MatMul and Add: only those become integer."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type != "Gemm" or node.input[1] not in weights or not _is_linear(onnx, node):
            nodes.append(node)
            continue
        name = node.input[1]
        transposed = name + HEAD
        if transposed not in weights:
            matrix = onnx.numpy_helper.to_array(weights[name])
            if _attribute(onnx, node, "transB", 0):
                matrix = matrix.T
            weights[transposed] = onnx.numpy_helper.from_array(
                np.ascontiguousarray(matrix), transposed
            )
        product = f"{node.output[0]}.product"
        helper = onnx.helper
        multiplied = [product if len(node.input) > 2 else node.output[0]]
        nodes.append(helper.make_node("MatMul", [node.input[0], transposed], multiplied))
        if len(node.input) > 2:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
    _replace(graph, nodes, weights)


def _int8_embeddings(onnx: Any, graph: Any) -> dict[str, str]:
    """Tables that Gather reads rows of, as int8; one that is an output matrix too shares it."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    helper, precisions, nodes = onnx.helper, {}, []
    for node in graph.node:
        table = weights.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or not _is_embedding(onnx, node, table):
            nodes.append(node)
            continue
        name, ids, rows = node.input[0], node.input[1], f"{node.output[0]}.int8"
        head, scales = f"{name}{HEAD}_quantized", f"{name}{HEAD}_scale"
        axes = _axes(graph, ids)
        if axes and _is_symmetric(onnx, weights, name):
            # [width, vocabulary]: rows of the table are its columns
            columns, order = f"{rows}.columns", [*range(1, axes + 1), 0]
            nodes.append(helper.make_node("Gather", [head, ids], [columns], axis=1))
            nodes.append(helper.make_node("Transpose", [columns], [rows], perm=order))
        else:
            stored, scale = quantize_rows(onnx.numpy_helper.to_array(table))
            scales = f"{name}_scale"
            weights[f"{name}_quantized"] = onnx.numpy_helper.from_array(stored, f"{name}_quantized")
            weights[scales] = onnx.numpy_helper.from_array(scale, scales)
            nodes.append(helper.make_node("Gather", [f"{name}_quantized", ids], [rows], axis=0))
        real, factor = f"{rows}.real", f"{rows}.scale"
        nodes.append(helper.make_node("Cast", [rows], [real], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Gather", [scales, ids], [f"{factor}s"], axis=0))
        nodes.append(helper.make_node("Unsqueeze", [f"{factor}s", "last_axis"], [factor]))
        nodes.append(helper.make_node("Mul", [real, factor], [node.output[0]]))
        last = np.array([-1], np.int64)
        weights["last_axis"] = onnx.numpy_helper.from_array(last, "last_axis")
        precisions[name] = INT8_ROWS
    _replace(graph, nodes, weights)
    return precisions


def quantize_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A table (rows, width) as int8 and one scale a row, symmetric about zero."""
    scale = np.maximum(np.abs(table).max(axis=1), np.float32(1e-30)) / np.float32(127)
    return np.rint(table / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def _matrices(graph: Any) -> list[str]:
    weights = {tensor.name for tensor in graph.initializer}
    return sorted({node.input[1] for node in graph.node if node.op_type == "MatMul"} & weights)


def _is_linear(onnx: Any, node: Any) -> bool:
    """x B + c, without factors."""
    one = all(_attribute(onnx, node, key, 1.0) == 1.0 for key in ("alpha", "beta"))
    return one and not _attribute(onnx, node, "transA", 0)


def _is_embedding(onnx: Any, node: Any, table: Any) -> bool:
    """Rows chosen by ids (beams, tokens) of a float table worth it."""
    return (
        table.data_type == onnx.TensorProto.FLOAT
        and len(table.dims) == 2
        and table.dims[0] * table.dims[1] >= LEAST_EMBEDDING
        and _attribute(onnx, node, "axis", 0) == 0
    )


def _is_symmetric(onnx: Any, weights: dict[str, Any], name: str) -> bool:
    """Whether the table is an int8 output matrix as well, its numbers scale * stored."""
    zero_points = weights.get(f"{name}{HEAD}_zero_point")
    if f"{name}{HEAD}_quantized" not in weights or zero_points is None:
        return False
    return not onnx.numpy_helper.to_array(zero_points).any()


def _axes(graph: Any, name: str) -> int:
    """How many axes a value has; 0 where the graph does not say."""
    for value in (*graph.input, *graph.value_info):
        if value.name == name:
            return len(value.type.tensor_type.shape.dim)
    return 0


def _attribute(onnx: Any, node: Any, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _replace(graph: Any, nodes: list[Any], weights: dict[str, Any]) -> None:
    """Other nodes, and of the weights those that they use."""
    used = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in weights.items() if name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
