"""Layers in int8, written by onnxruntime's quantizers: static (QDQ) and dynamic."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError
from penstock.export.onnx.calibration import tensors_data
from penstock.export.onnx.layers import AS_MATMUL
from penstock.export.onnx.libraries import onnx_library, quantization, quiet_libraries
from penstock.export.onnx.node_choice import nodes_to_quantize
from penstock.export.onnx.preparation import PreparedModel
from penstock.export.onnx.recipe import OnnxRecipe
from penstock.quant.observers import ValueRange

ONE_SCALE = ("Conv", "Gather")
"""Operators that dynamic quantization gives one scale whatever it is asked for."""


def static_int8(
    prepared: PreparedModel,
    recipe: OnnxRecipe,
    ranges: Mapping[str, ValueRange],
    layers: Collection[str] | None = None,
) -> Any:
    """A copy with QuantizeLinear and DequantizeLinear around the layers.

    Args:
        ranges: of all activations, from `calibrate`.
        layers: names; None: all that have weights.

    Raises:
        PenstockError: the library fails.
    """
    model = copied(prepared.model)
    chosen = {layer.name for layer in prepared.layers} if layers is None else set(layers)
    if not chosen:
        return model
    tools = quantization()
    nodes = nodes_to_quantize(model.graph, prepared.layers, chosen)
    try:
        with quiet_libraries():
            quantizer = quantization("qdq_quantizer").QDQQuantizer(
                model,
                recipe.per_channel,
                recipe.reduce_range,
                tools.QuantType.QUInt8 if recipe.uint8_weights else tools.QuantType.QInt8,
                tools.QuantType.QUInt8,
                tensors_data(prepared, ranges),
                nodes,
                [],
                sorted({node.op_type for node in model.graph.node if node.name in nodes}),
                {"ActivationSymmetric": recipe.symmetric},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            return quantizer.model.model
    except Exception as error:  # asserts and its own kinds
        raise _failed(prepared, recipe, error) from error


def dynamic_int8(
    prepared: PreparedModel, recipe: OnnxRecipe, layers: Collection[str] | None = None
) -> Any:
    """A copy whose layers scale their inputs in every run; see `static_int8`."""
    if layers is not None and not layers:
        return copied(prepared.model)
    tools, onnx = quantization(), onnx_library()
    names = [layer.name for layer in prepared.layers if layers is None or layer.name in layers]
    nodes = names + [name + AS_MATMUL for name in names]  # it makes MatMul of Gemm first
    with tempfile.TemporaryDirectory(prefix="penstock-onnx-") as folder:
        out = Path(folder) / "dynamic.onnx"
        try:
            with quiet_libraries():
                tools.quantize_dynamic(
                    copied(prepared.model),
                    str(out),
                    per_channel=recipe.per_channel,
                    reduce_range=recipe.reduce_range,
                    weight_type=tools.QuantType.QInt8,
                    nodes_to_quantize=nodes,
                )
                return onnx.load(str(out))
        except Exception as error:  # asserts and its own kinds
            raise _failed(prepared, recipe, error) from error


def one_scale_note(prepared: PreparedModel, recipe: OnnxRecipe) -> tuple[str, ...]:
    """Says which layers have one scale although a scale for each channel was asked for."""
    if recipe.kind != "dynamic-int8" or not recipe.per_channel:
        return ()
    whole = [layer.operator for layer in prepared.layers if layer.operator in ONE_SCALE]
    if not whole:
        return ()
    return (
        f"{len(whole)} of {len(prepared.layers)} layers ({', '.join(sorted(set(whole)))}) have one "
        "scale: onnxruntime's dynamic quantization knows no per-channel for them; static-int8 and "
        "weight-int8 do",
    )


def copied(model: Any) -> Any:
    """The library writes into what it is given."""
    copy = onnx_library().ModelProto()
    copy.CopyFrom(model)
    return copy


def _failed(prepared: PreparedModel, recipe: OnnxRecipe, error: Exception) -> PenstockError:
    what = " ".join(str(error).split()) or type(error).__name__
    return PenstockError(
        f"{prepared.source}: onnxruntime's quantizer failed with recipe '{recipe}': {what}"
    )
