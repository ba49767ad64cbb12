"""AI Edge Quantizer, kept quiet and held to what it was asked.

Recipes that quantize activations are its work. It prints a report of sizes, logs through absl and
warns of its own interpreter; what it raises is an error here, with its words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from penstock.errors import BackendMissingError, PenstockError, UsageError
from penstock.export.dataset import Dataset
from penstock.export.litert.activation_ranges import activation_ranges
from penstock.export.litert.flatbuffer_model import parse, text
from penstock.export.litert.quiet import quiet
from penstock.export.litert.recipes import Recipe
from penstock.export.litert.weight_layers import WeightLayer, weight_layers
from penstock.loaders.tensor_graph import TensorGraph

BLOCK = 32
BATCH = 16  # samples in memory at once


def quantize_by_library(
    content: bytes,
    graph: TensorGraph,
    recipe: Recipe,
    calibration: Dataset | None,
    *,
    limit: int | None = None,
    threads: int = 1,
    on_sample: Callable[[int, int], None] | None = None,
) -> bytes:
    """The file, quantized. Whether it is quantized at all is for the caller to check.

    Args:
        content: a repaired file: codes in both fields, a signature, names.
        graph: its structure, for inputs and errors.
        limit: samples to calibrate on, at most.
        on_sample: called with (calibration samples done, of how many).

    Raises:
        UsageError: calibration data is missing, or does not fit.
        PenstockError: the library failed.
        BackendMissingError: it is not installed.
    """
    if recipe.calibrated and (calibration is None or len(calibration) == 0):
        raise UsageError(
            f"recipe {recipe.name} quantizes activations by what flows through the model: give "
            "calibration data, a folder of images or an .npz"
        )
    library = _library()
    model = parse(content, str(graph.path))
    with quiet(), _failures(graph, recipe):
        quantizer = library.Quantizer(content)
        _apply(quantizer, recipe, model)
        ranges = None
        if recipe.calibrated:
            assert calibration is not None
            options: dict[str, Any] = {"limit": limit, "threads": threads, "on_sample": on_sample}
            if recipe.method == "average" or len(model.subgraphs) > 1:
                key = text(model.signatureDefs[0].signatureKey)
                ranges = _library_ranges(quantizer, key, graph, calibration, **options)
            else:
                ranges = _ranges(content, graph, model, calibration, recipe, **options)
        made = quantizer.quantize(
            ranges, enable_progress_bar=False, enable_progress_report=False
        ).quantized_model
    return bytes(made)


def channel_precisions(recipe: Recipe, layers: Iterable[WeightLayer]) -> dict[str, str]:
    """Layers that the library gives a scale a channel with this recipe, and their precision."""
    if recipe.weights == "int8":
        return {layer.name: "int8" for layer in layers}
    int4 = ("CONV_2D", "FULLY_CONNECTED")
    return {
        layer.name: "int4" if layer.operator in int4 else "int8"
        for layer in layers
        if not _in_blocks(layer)
    }


def _in_blocks(layer: WeightLayer) -> bool:
    """Whether `dynamic-int4` gives the layer a scale for each block of a row."""
    return layer.operator == "FULLY_CONNECTED" and layer.shape[1] % BLOCK == 0


@contextmanager
def _failures(graph: TensorGraph, recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except PenstockError:
        raise
    except Exception as error:  # the library raises what it comes upon
        raise PenstockError(
            f"{graph.path}: AI Edge Quantizer failed with recipe {recipe.name}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}; try weight-int8, which "
            "needs no operator's support"
        ) from None


def _library() -> Any:
    try:
        with quiet():
            from ai_edge_quantizer import quantizer
    except ImportError as error:
        raise BackendMissingError(
            f"this recipe needs ai-edge-quantizer, which cannot be imported ({error}); install it "
            "with: pip install 'penstock[litert-export]', or use weight-int8 or weight-int4"
        ) from None
    return quantizer


def _apply(quantizer: Any, recipe: Recipe, model: Any) -> None:
    from ai_edge_quantizer.qtyping import QuantGranularity as Granularity
    from ai_edge_quantizer.qtyping import TFLOperationName as Name

    if recipe.calibrated:
        quantizer.add_static_config(".*", Name.ALL_SUPPORTED, recipe.activation_bits, 8)
        return
    quantizer.add_dynamic_config(".*", Name.ALL_SUPPORTED, 8)
    if recipe.weights == "int8":
        return
    for name in (Name.FULLY_CONNECTED, Name.CONV_2D):  # depthwise ones have no int4 kernel
        quantizer.add_dynamic_config(".*", name, 4)
    for layer in weight_layers(model):
        if _in_blocks(layer):
            quantizer.add_dynamic_config(
                _scope(model, layer), Name.FULLY_CONNECTED, 4, Granularity.BLOCKWISE_32
            )


def _scope(model: Any, layer: WeightLayer) -> str:
    """A regular expression of what the layer makes: the library knows operators by that."""
    import re

    graph = model.subgraphs[layer.subgraph]
    out = int(graph.operators[layer.node].outputs[0])
    return f"^{re.escape(text(graph.tensors[out].name))}$"


def _ranges(
    content: bytes,
    graph: TensorGraph,
    model: Any,
    calibration: Dataset,
    recipe: Recipe,
    **options: Any,
) -> dict[str, Any]:
    """Ranges in the library's form."""
    bits = recipe.activation_bits
    found = activation_ranges(
        content, graph, model, calibration, recipe.method, bits=bits, **options
    )
    return {
        name: {
            "min": np.full((1,) * rank, seen.low, np.float32),
            "max": np.full((1,) * rank, seen.high, np.float32),
        }
        for name, (seen, rank) in found.items()
    }


def _library_ranges(
    quantizer: Any,
    key: str,
    graph: TensorGraph,
    calibration: Dataset,
    *,
    limit: int | None,
    threads: int,
    on_sample: Callable[[int, int], None] | None,
) -> Any:
    """Moving averages of extremes. The library keeps a list of its data: it gets a few at once."""
    from penstock.runtime.backends.arrays import check_inputs

    count = len(calibration) if limit is None else min(limit, len(calibration))
    ranges: Any = None
    batch: list[dict[str, Any]] = []
    for done, sample in enumerate(calibration.samples(limit), 1):
        try:
            batch.append(check_inputs(graph.path, graph.inputs, sample.arrays, True, True))
        except UsageError as error:
            raise UsageError(f"{sample.name}: {error}") from None
        if len(batch) == BATCH or done == count:
            ranges = quantizer.calibrate({key: batch}, ranges, num_threads=threads)
            batch = []
        if on_sample is not None:
            on_sample(done, count)
    return ranges
