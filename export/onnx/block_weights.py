"""MatMul and Gemm with weights in blocks of 4 or 8 bits, by onnxruntime's MatMulNBitsQuantizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from penstock.errors import BackendMissingError, PenstockError, UsageError
from penstock.export.dataset import Dataset
from penstock.export.onnx.int8 import copied
from penstock.export.onnx.layers import AS_MATMUL
from penstock.export.onnx.libraries import quantization, quiet_libraries
from penstock.export.onnx.preparation import PreparedModel
from penstock.export.onnx.recipe import OnnxRecipe

OPERATORS = ("MatMul", "Gemm")
GPTQ_SAMPLES = 32
"""GPTQ of onnxruntime holds all of its samples in memory."""


def block_weights(
    prepared: PreparedModel,
    recipe: OnnxRecipe,
    calibration: Dataset | None = None,
    layers: Collection[str] | None = None,
) -> Any:
    """A copy with MatMulNBits for the layers; Gemm becomes MatMul and Add first.

    Args:
        calibration: for `gptq`, which looks at 32 samples of it at the most.
        layers: names; None: all MatMul and Gemm with constant weights.

    Raises:
        UsageError: gptq without data.
        BackendMissingError: hqq without torch.
        PenstockError: the library fails.
    """
    if recipe.algorithm == "gptq" and calibration is None:
        raise UsageError(f"recipe '{recipe}' needs calibration data")
    if recipe.algorithm == "hqq" and importlib.util.find_spec("torch") is None:
        raise BackendMissingError(
            "hqq of onnxruntime computes with torch; install it with: pip install "
            "'penstock[export]', or take rtn or k-quant"
        )
    if layers is not None and not layers:
        return copied(prepared.model)
    chosen = {layer.name for layer in prepared.layers if layers is None or layer.name in layers}
    nearest = chosen & set(rounded_to_nearest(prepared, recipe))
    try:
        with quiet_libraries():
            model = quantization("onnx_model").ONNXModel(copied(prepared.model))
            model.replace_gemm_with_matmul()
            model.clean_initializers()
            # First these: gptq takes every MatMul that it finds.
            made = _written(model.model, replace(recipe, algorithm="rtn"), None, nearest)
            return _written(made, recipe, calibration, chosen - nearest)
    except Exception as error:  # asserts, and what it lets through of NumPy and torch
        what = " ".join(str(error).split()) or type(error).__name__
        raise PenstockError(
            f"{prepared.source}: onnxruntime's quantizer failed with recipe '{recipe}': {what}"
        ) from error


def rounded_to_nearest(prepared: PreparedModel, recipe: OnnxRecipe) -> list[str]:
    """Layers that get `rtn` whatever the recipe's algorithm.

    onnxruntime's `k-quant` and `gptq` cannot pack the zero points of an odd number of blocks in 4
    bits; its `hqq` wants whole blocks.
    """
    if recipe.algorithm == "rtn":
        return [layer.name for layer in prepared.layers]
    odd = []
    for layer in prepared.layers:
        if layer.operator in OPERATORS:
            blocks, rest = divmod(layer.parameters // layer.channels, recipe.block)
            if rest or (recipe.algorithm != "hqq" and blocks % 2):
                odd.append(layer.name)
    return odd


def nearest_note(prepared: PreparedModel, recipe: OnnxRecipe) -> tuple[str, ...]:
    """Says which layers did not get the recipe's algorithm; empty where all did."""
    if not recipe.bits_of_blocks or recipe.algorithm == "rtn":
        return ()
    odd = rounded_to_nearest(prepared, recipe)
    if not odd:
        return ()
    return (
        f"{len(odd)} layers were rounded to nearest, as onnxruntime's {recipe.algorithm} cannot "
        f"do their number of blocks: {', '.join(odd[:3])}{'...' if len(odd) > 3 else ''}",
    )


def _written(
    model: Any, recipe: OnnxRecipe, calibration: Dataset | None, layers: Collection[str]
) -> Any:
    if not layers:
        return model
    tools = quantization("matmul_nbits_quantizer")
    quantizer = tools.MatMulNBitsQuantizer(
        model,
        bits=recipe.bits_of_blocks,
        block_size=recipe.block,
        is_symmetric=recipe.symmetric,
        quant_format=_format(recipe),
        nodes_to_exclude=_others(model.graph, layers),
        algo_config=_algorithm(tools, recipe, calibration),
    )
    quantizer.process()
    quantizer.model.topological_sort()
    return quantizer.model.model


class SampleReader:
    """The samples as onnxruntime's quantizers ask for them; they copy it before they read."""

    batch_size = 1

    def __init__(self, dataset: Dataset, limit: int) -> None:
        self.dataset = dataset
        self.limit = limit

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (sample.arrays for sample in self.dataset.samples(self.limit))

    def get_next(self) -> dict[str, Any] | None:
        """What makes it a reader in their eyes; they iterate."""
        return next(iter(self), None)


def _algorithm(tools: Any, recipe: OnnxRecipe, calibration: Dataset | None) -> Any:
    if recipe.algorithm == "rtn":  # their own compiled one, which is also the fastest
        return None
    if recipe.algorithm == "hqq":
        return tools.HQQWeightOnlyQuantConfig(recipe.block, recipe.bits_of_blocks)
    if recipe.algorithm == "k-quant":
        return tools.KQuantWeightOnlyQuantConfig()
    assert calibration is not None
    reader = SampleReader(calibration, GPTQ_SAMPLES)
    return tools.GPTQWeightOnlyQuantConfig(reader, block_size=recipe.block)


def _format(recipe: OnnxRecipe) -> Any:
    formats = quantization().QuantFormat
    return formats.QDQ if recipe.qdq else formats.QOperator


def _others(graph: Any, chosen: Collection[str]) -> list[str]:
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and node.name.removesuffix(AS_MATMUL) not in chosen
    ]
