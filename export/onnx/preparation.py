"""Before quantization: weights that are constants, names for all nodes, an opset that has what is
needed, known shapes, and batch norms folded into convolutions."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import FormatError, UnsupportedModelError
from penstock.export.onnx.layers import Layer, weighted_layers
from penstock.export.onnx.libraries import onnx_library, quantization, quiet_libraries
from penstock.loaders.onnx_file import read_onnx

PER_AXIS_OPSET = 13
"""Of the first DequantizeLinear with a scale for each channel."""
INT4_OPSET = 21
"""Of the first one that takes int4."""
MAX_BYTES = 2_000_000_000  # protobuf holds 2 GiB; scales and zero points need room
_FUSED = "/MatMulAddFusion"  # of the name that onnxruntime gives a MatMul with its Add
_IR_OF_OPSET = ((21, 10), (0, 8))  # the least IR version that has the opset's types


@dataclass(frozen=True)
class PreparedModel:
    """A float model that can be quantized.

    Attributes:
        source: the file.
        model: an `onnx.ModelProto`; whoever changes it copies it first.
        layers: with weights.
        notes: what was done to it, for people.
    """

    source: Path
    model: Any
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]


def prepare_model(source: Path, opset: int = PER_AXIS_OPSET) -> PreparedModel:
    """Read a model and make it ready.

    Args:
        opset: that it must have at the least.

    Raises:
        FormatError, StorageError: the file is damaged, or cannot be read.
        UnsupportedModelError: too large, or its opset cannot be raised.
        BackendMissingError.
    """
    graph = read_onnx(source)
    if graph.size > MAX_BYTES:
        raise UnsupportedModelError(
            f"{source}: {graph.size} bytes with its weights; models of up to {MAX_BYTES} bytes can "
            "be quantized, as onnxruntime's tools hold one whole in a message of 2 GiB at most"
        )
    onnx = onnx_library()
    try:
        model = onnx.load(str(source))
    except Exception as error:  # protobuf's kinds, and onnx's for weights beside the file
        raise FormatError(f"{source}: onnx cannot read it: {error}") from None
    notes: list[str] = []
    with quiet_libraries():
        free_constants(model)
        name_nodes(model)
        model = raise_opset(source, model, opset, notes)
        model = fold_and_infer(model, notes)
    name_nodes(model)
    drop_unused_domains(model)
    return PreparedModel(source, model, weighted_layers(model.graph), tuple(notes))


def broken_layers(prepared: PreparedModel) -> list[Layer]:
    """Those with NaN or infinity among their weights; tables that rows are taken from may have such
    (masks are)."""
    onnx = onnx_library()
    tensors = {tensor.name: tensor for tensor in prepared.model.graph.initializer}
    return [
        layer
        for layer in prepared.layers
        if layer.operator != "Gather"
        and not np.isfinite(onnx.numpy_helper.to_array(tensors[layer.weight])).all()
    ]


def free_constants(model: Any) -> None:
    """Before IR version 4 each weight is an input too, which nothing can be folded into."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def name_nodes(model: Any) -> None:
    """Names are how nodes are chosen; one without is named after what it makes, as in `inspect`."""
    seen: set[str] = set()
    for node in model.graph.node:
        name = node.name or next(filter(None, node.output), node.op_type)
        name = name.removesuffix(_FUSED)
        while name in seen:
            name += "_"
        node.name = name
        seen.add(name)


def raise_opset(source: Path, model: Any, opset: int, notes: list[str]) -> Any:
    """The model in operators of that version at the least, and an IR version that fits.

    Raises:
        UnsupportedModelError: onnx has no way to convert it.
    """
    onnx = onnx_library()
    now = opset_of(model)
    wanted = next(ir for least, ir in _IR_OF_OPSET if max(now, opset) >= least)
    model.ir_version = max(model.ir_version, wanted)
    if now < opset:
        try:
            model = onnx.version_converter.convert_version(model, opset)
        except Exception as error:
            raise UnsupportedModelError(
                f"{source}: its operators are of opset {now} and {opset} is needed, but onnx cannot"
                f" convert it ({_first_line(error)}); export it again with opset {opset}"
            ) from None
        notes.append(f"opset raised from {now} to {opset}")
        model.ir_version = max(model.ir_version, wanted)
    return model


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators."""
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return int(max(versions, default=1))


def fold_and_infer(model: Any, notes: list[str]) -> Any:
    """onnxruntime's pre-processing: constants and batch norms folded, shapes inferred."""
    onnx = onnx_library()
    process = quantization("shape_inference").quant_pre_process
    last = ""
    with tempfile.TemporaryDirectory(prefix="penstock-onnx-") as folder:
        # Given the message itself, it moves the weights out of it and writes a model without them.
        given, out = str(Path(folder) / "given.onnx"), str(Path(folder) / "prepared.onnx")
        onnx.save(model, given)
        best = None
        for symbolic in (False, True):  # the symbolic one needs sympy and takes seconds to start
            try:
                process(given, out, skip_symbolic_shape=not symbolic)
                best = onnx.load(out)
            except Exception as error:  # asserts, ImportError, its own kinds
                last = _first_line(error)
            if best is not None and (symbolic or _all_known(best)):
                return best
    if best is not None:
        return best
    notes.append(f"constants were not folded and shapes not inferred: {last}")
    return model


def _all_known(model: Any) -> bool:
    """Whether every tensor that a node makes has a shape."""
    values = (*model.graph.value_info, *model.graph.output)
    known = {v.name for v in values if v.type.tensor_type.HasField("shape")}
    return all(name in known for node in model.graph.node for name in node.output if name)


def drop_unused_domains(model: Any) -> None:
    """onnxruntime's optimizer declares every domain that it knows."""
    used = {node.domain or "" for node in walk_nodes(model.graph)} | {""}
    for function in model.functions:
        used |= {function.domain} | {node.domain or "" for node in function.node}
    kept = [o for o in model.opset_import if ("" if o.domain == "ai.onnx" else o.domain) in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def without_shapes(model: Any) -> Any:
    """Less what runtimes infer when they load it: the shapes of tensors inside, and remarks."""
    del model.graph.value_info[:]
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
    return model


def walk_nodes(graph: Any) -> Any:
    """All nodes, with those of graphs inside of nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from walk_nodes(attribute.g)
            for inner in attribute.graphs:
                yield from walk_nodes(inner)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
