"""Quantize an ONNX model: one artifact and one report, or an error and nothing.

report = quantize_onnx("float.onnx", "int8.onnx", "static-int8 percentile", calibration=photos)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import UnsupportedModelError, UsageError
from penstock.export.artifact_report import ArtifactReport
from penstock.export.dataset import Dataset
from penstock.export.gates import Floors, change_gate
from penstock.export.mixed_precision import FLOAT
from penstock.export.onnx.block_weights import OPERATORS as BLOCK_OPERATORS
from penstock.export.onnx.block_weights import block_weights, nearest_note
from penstock.export.onnx.calibration import calibrate
from penstock.export.onnx.int8 import dynamic_int8, one_scale_note, static_int8
from penstock.export.onnx.layers import layer_formats
from penstock.export.onnx.precision_builder import OnnxPrecisionBuilder
from penstock.export.onnx.preparation import (
    INT4_OPSET,
    PER_AXIS_OPSET,
    PreparedModel,
    broken_layers,
    prepare_model,
    without_shapes,
)
from penstock.export.onnx.processor import saturation_note
from penstock.export.onnx.recipe import OnnxRecipe, parse_recipe
from penstock.export.onnx.weight_only import OPERATORS, weight_only
from penstock.export.precision_search import Found, PrecisionSearch
from penstock.export.quantization_job import SHOWN_LAYERS, QuantizationJob, left_float
from penstock.export.report import ProgressCallback
from penstock.export.stage_clock import StageClock
from penstock.export.target_file import check_target
from penstock.loaders.cores import compute_threads
from penstock.loaders.onnx_file import read_onnx
from penstock.loaders.tensor_graph import TensorGraph

if TYPE_CHECKING:
    from penstock.runtime.backends.onnx_model import OnnxModel


def quantize_onnx(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: str | OnnxRecipe,
    *,
    calibration: Dataset | None = None,
    evaluation: Dataset | None = None,
    floors: Floors | None = None,
    search: PrecisionSearch | None = None,
    samples: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ArtifactReport:
    """Quantize an ONNX model, load it back, and hold it against the float one.

    Args:
        recipe: see `penstock.export.onnx.recipe`.
        calibration: what ranges of activations come from; `static-int8` and `gptq` need it.
        evaluation: what the report is measured on. None: the calibration data, or random inputs;
            a note says so.
        floors: what the result must hold.
        search: rank the layers, or choose a mix of int4, int8 and float.
        samples: to calibrate on, at most; None: all.
        threads: for calibration and comparison; None: all cores. Latency is that of one thread.
        overwrite: whether `out` may exist.

    Raises:
        GateError: the artifact was refused; nothing was written.
        UsageError: an argument, or the data does not fit the model; a size or drop that no mix
            can keep.
        FormatError: the source is damaged.
        UnsupportedModelError: operators that onnxruntime does not have, listed by name.
        PenstockError: the quantizer fails.
        BackendMissingError, StorageError.
    """
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    search, floors = search or PrecisionSearch(), floors or Floors()
    cores = compute_threads(threads)
    source, out = Path(source), Path(out)
    check_target(source, out, overwrite, ".onnx", "an ONNX model")
    if recipe.calibrated and calibration is None:
        raise UsageError(
            f"recipe '{recipe}' needs calibration data: a folder of images or an .npz "
            "(--calibration)"
        )
    if search.wanted and recipe.bits_of_blocks:
        raise UsageError(
            f"recipe '{recipe}' has one precision; take static-int8, dynamic-int8 or weight-int8 "
            "to rank layers or mix precisions"
        )
    with open_onnx(source, 1):  # operators that onnxruntime lacks are an error here
        graph = read_onnx(source)
    clock = StageClock()
    with clock("preparation"):
        int4 = recipe.kind == "weight-int4" or search.wanted or recipe.qdq
        prepared = prepare_model(source, INT4_OPSET if int4 else PER_AXIS_OPSET)
    _check_layers(prepared, graph, recipe)
    job = _Job(
        source, graph.inputs, open_onnx, calibration, evaluation, samples, cores, clock, progress,
        prepared, graph, recipe,
    )  # fmt: skip
    job.check_floors(floors)
    return job.finish(*job.quantized(search), out, floors)


def _check_layers(prepared: PreparedModel, graph: TensorGraph, recipe: OnnxRecipe) -> None:
    """Whether there is something that the recipe quantizes, and all of it can be.

    Raises:
        UsageError: no layers, none that the recipe takes, or weights that are not finite.
    """
    if not prepared.layers:
        kinds = ", ".join(f"{n} {kind}" for kind, n in list(graph.operators.items())[:SHOWN_LAYERS])
        raise UsageError(
            f"{prepared.source}: it has no layers with constant float weights to quantize (its "
            f"operators: {kinds}); if it is quantized already, give the float model"
        )
    operators = {layer.operator for layer in prepared.layers}
    if recipe.bits_of_blocks and operators.isdisjoint(BLOCK_OPERATORS):
        raise UsageError(
            f"{prepared.source}: {recipe.kind} quantizes {' and '.join(BLOCK_OPERATORS)} alone, "
            f"and all of its {len(prepared.layers)} layers are {', '.join(sorted(operators))}; "
            "take weight-int4, weight-int8 or static-int8"
        )
    for layer in broken_layers(prepared):
        raise UsageError(
            f"{prepared.source}: weight '{layer.weight}' of layer '{layer.name}' has NaN or "
            "infinity, and cannot be quantized"
        )


@dataclass
class _Job(QuantizationJob):
    prepared: PreparedModel
    graph: TensorGraph
    recipe: OnnxRecipe

    def quantized(self, search: PrecisionSearch) -> tuple[Any, Found]:
        """The model as the recipe, or the search, has it."""
        prepared, recipe = self.prepared, self.recipe
        ranges = {}
        if recipe.kind == "static-int8":
            assert self.calibration is not None
            with self.clock("calibration"):
                ranges = calibrate(
                    prepared,
                    self.calibration,
                    recipe,
                    limit=self.samples,
                    threads=self.threads,
                    progress=self.progress,
                )
        found = Found((), None, ())
        if search.wanted:
            builder = OnnxPrecisionBuilder(prepared, recipe, ranges)
            with self.clock("search"):
                found = self.search(builder, search)
            if found.mix is not None:
                return builder.model(found.mix.precisions), found
        with self.clock("quantization"):
            if recipe.kind == "static-int8":
                return static_int8(prepared, recipe, ranges), found
            if recipe.kind == "dynamic-int8":
                return dynamic_int8(prepared, recipe), found
            if recipe.bits_of_blocks:
                return block_weights(prepared, recipe, self.calibration), found
            form = recipe.kind.removeprefix("weight-")
            chosen = {x.name: form for x in prepared.layers if x.operator in OPERATORS}
            return weight_only(prepared, chosen), found

    def finish(self, model: Any, found: Found, out: Path, floors: Floors) -> ArtifactReport:
        """Write, check, and keep or refuse."""
        prepared, recipe = self.prepared, self.recipe
        data, limit, notes = self.report_data()
        formats = layer_formats(model.graph, prepared.layers)
        changed = sum(form != FLOAT for form in formats.values())
        content = serialized(without_shapes(model), out)
        draft = ArtifactReport(
            source=str(self.source),
            artifact=str(out),
            target="onnx",
            recipe=str(recipe) if found.mix is None else f"mix of {recipe}, int4 and float",
            source_bytes=self.graph.size,
            artifact_bytes=len(content),
            sensitivity=found.sensitivity,
            precisions=formats,
            gates=(change_gate(changed, len(prepared.layers)),),
            notes=(
                *prepared.notes,
                *left_float(formats, found),
                *found.notes,
                *notes,
                *nearest_note(prepared, recipe),
                *one_scale_note(prepared, recipe),
                *saturation_note(recipe),
            ),
        )
        return self.keep(content, out, draft, data, limit, floors)


def open_onnx(path: Path, threads: int) -> OnnxModel:
    """Load an ONNX file, whatever its name ends in."""
    from penstock.runtime.backends.onnx_model import OnnxModel

    return OnnxModel(read_onnx(path), threads)


def serialized(model: Any, out: Path) -> bytes:
    """The file's bytes.

    Raises:
        UnsupportedModelError: more than a message of protobuf holds.
    """
    try:
        return bytes(model.SerializeToString())
    except Exception as error:  # of protobuf; its kinds differ between versions
        raise UnsupportedModelError(f"{out}: the model does not fit one file: {error}") from None
