"""Quantize a TFLite model: one artifact and one report, or an error and nothing.

    report = quantize_tflite("float.tflite", "int4.tflite", "weight-int4", calibration=photos)

The file is repaired first, where older converters left something out (`repair`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import UsageError
from penstock.export.artifact_report import ArtifactReport
from penstock.export.dataset import Dataset
from penstock.export.gates import Floors, change_gate
from penstock.export.litert.attached_files import carry_over
from penstock.export.litert.edge_quantizer import channel_precisions, quantize_by_library
from penstock.export.litert.flatbuffer_model import parse, read_model
from penstock.export.litert.flatbuffer_writer import serialize
from penstock.export.litert.precision_builder import TflitePrecisionBuilder
from penstock.export.litert.recipes import Recipe, litert_recipe
from penstock.export.litert.repair import repair
from penstock.export.litert.weight_layers import stored_types, weight_layers
from penstock.export.mixed_precision import FLOAT
from penstock.export.precision_search import Found, PrecisionSearch
from penstock.export.quantization_job import QuantizationJob, left_float
from penstock.export.report import Progress, ProgressCallback
from penstock.export.stage_clock import StageClock
from penstock.export.target_file import check_target
from penstock.loaders.cores import compute_threads
from penstock.loaders.tensor_graph import TensorGraph
from penstock.loaders.tflite_file import read_tflite

if TYPE_CHECKING:
    from penstock.runtime.backends.litert_model import LitertModel


def quantize_tflite(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: str | Recipe,
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
    """Quantize a TFLite model, load it back, and hold it against the float one.

    Args:
        recipe: see `penstock.export.litert.recipes`.
        calibration: the static recipes need it; `weight-int8` and `weight-int4` lose less with it.
        evaluation: what the report is measured on. None: the calibration data, or random inputs;
            a note says so.
        floors: what the result must hold.
        search: rank the layers, or choose a mix of int4, int8 and float; of the weight recipes.
        samples: to calibrate on, at most; None: all.
        threads: for calibration and comparison; None: all cores. Latency is that of one thread.
        overwrite: whether `out` may exist.

    Raises:
        GateError: the artifact was refused; nothing was written.
        UsageError: an argument, or the data does not fit the model; a size or drop that no mix
            can keep; the model is quantized already.
        FormatError: the source is damaged.
        UnsupportedModelError: operators that LiteRT does not have, listed by name.
        PenstockError: the quantizer fails.
        BackendMissingError, StorageError.
    """
    recipe = litert_recipe(recipe) if isinstance(recipe, str) else recipe
    search, floors = search or PrecisionSearch(), floors or Floors()
    source, out = Path(source), Path(out)
    check_target(source, out, overwrite, ".tflite", "a TFLite model")
    if recipe.calibrated and calibration is None:
        raise UsageError(
            f"recipe '{recipe.name}' needs calibration data: a folder of images or an .npz "
            "(--calibration)"
        )
    if search.wanted and recipe.library:
        raise UsageError(
            f"recipe '{recipe.name}' has one precision; take weight-int8 or weight-int4 to rank "
            "layers or mix precisions"
        )
    open_litert(source, 1).close()  # operators that LiteRT lacks are an error here
    clock = StageClock()
    with clock("preparation"):
        model = repaired_model(source)
    job = _Job(
        source, model.graph.inputs, open_litert, calibration, evaluation, samples,
        compute_threads(threads), clock, progress, model, recipe,
    )  # fmt: skip
    job.check_floors(floors)
    return job.finish(*job.quantized(search), out, floors)


@dataclass(frozen=True)
class RepairedModel:
    """A float model that is ready to be quantized.

    Attributes:
        content: of the file, repaired; graph: of the source, with the same ports.
        precisions: of each weighted layer, by name: `float`, `int8`, ...
        subgraphs: count; more than one where there are loops or conditions.
        notes: what was repaired.
    """

    content: bytes
    graph: TensorGraph
    precisions: dict[str, str]
    subgraphs: int
    notes: tuple[str, ...]


def repaired_model(source: Path) -> RepairedModel:
    """Read a model and repair it.

    Raises:
        UsageError: there are no float weights to quantize.
        FormatError, StorageError, BackendMissingError.
    """
    graph, objects = read_model(source)
    notes = repair(objects, graph)
    names = [layer.name for layer in weight_layers(objects)]
    precisions = dict(zip(names, _precisions(objects), strict=True))
    if FLOAT not in precisions.values():
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(precisions.values()).items())
        raise UsageError(
            f"{source}: none of its {len(names)} layers with weights is float32"
            f"{f' ({kinds}): it is quantized already' if names else ''}; give the float model"
        )
    subgraphs = len(objects.subgraphs)
    return RepairedModel(serialize(objects), graph, precisions, subgraphs, notes)


@dataclass
class _Job(QuantizationJob):
    model: RepairedModel
    recipe: Recipe

    def quantized(self, search: PrecisionSearch) -> tuple[bytes, Found]:
        """The file as the recipe, or the search, has it."""
        with self.clock("calibration"):
            builder = TflitePrecisionBuilder(
                self.model.content,
                self.model.graph,
                self.calibration,
                limit=self.samples,
                threads=self.threads,
                on_sample=self._tell("calibration"),
            )
        nothing = Found((), None, ())
        if self.recipe.library:
            with self.clock("quantization"):
                return self._by_library(builder), nothing
        found = nothing
        if search.wanted:
            with self.clock("search"):
                found = self.search(builder, search)
        with self.clock("quantization"):
            if found.mix is not None:
                return builder.content(found.mix.precisions), found
            wanted = self.recipe.weights
            chosen = {x.name: wanted for x in builder.layers if wanted in x.bytes}
            return builder.content(chosen), found

    def _by_library(self, builder: TflitePrecisionBuilder) -> bytes:
        """The library rounds to nearest: with calibration data it gets weights rounded better."""
        content = self.model.content
        if builder.statistics:
            layers = [layer for name, layer in builder.found.items() if name in builder.statistics]
            content = builder.rounded_content(channel_precisions(self.recipe, layers))
        made = quantize_by_library(
            content,
            self.model.graph,
            self.recipe,
            self.calibration,
            limit=self.samples,
            threads=self.threads,
            on_sample=self._tell("ranges of activations"),
        )
        # Written again: what the library puts behind the FlatBuffer, old runtimes lack.
        return serialize(parse(made, str(self.source)))

    def finish(self, content: bytes, found: Found, out: Path, floors: Floors) -> ArtifactReport:
        """Write, check, and keep or refuse."""
        data, limit, notes = self.report_data()
        before = self.model.precisions
        made = _precisions(parse(content, str(out)))
        changed = sum(p != FLOAT for p in made) - sum(p != FLOAT for p in before.values())
        after = _named(made, before)
        content, attached = carry_over(self.source, content)
        why = "" if self.recipe.library else ", for which scales would take what bits save"
        draft = ArtifactReport(
            source=str(self.source),
            artifact=str(out),
            target="litert",
            recipe=str(self.recipe) if found.mix is None else "mix of int4, int8 and float",
            source_bytes=self.model.graph.size,
            artifact_bytes=len(content),
            sensitivity=found.sensitivity,
            precisions=after,
            gates=(change_gate(changed, len(before)),),
            notes=(
                *self.model.notes,
                *attached,
                *left_float(after, found, why),
                *self._uncalibrated(),
                *self._librarys_ranges(),
                *found.notes,
                *notes,
            ),
        )
        return self.keep(content, out, draft, data, limit, floors)

    def _uncalibrated(self) -> tuple[str, ...]:
        if self.calibration is not None:
            return ()
        return ("weights were rounded to nearest: with calibration data less is lost",)

    def _librarys_ranges(self) -> tuple[str, ...]:
        """Subgraphs other than the first cannot be watched."""
        own = self.recipe.calibrated and self.recipe.method != "average"
        if not own or self.model.subgraphs == 1:
            return ()
        return (
            f"the model has {self.model.subgraphs} subgraphs: ranges are AI Edge Quantizer's "
            f"moving averages of extremes (average), not {self.recipe.method}",
        )

    def _tell(self, stage: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        if progress is None:
            return None
        return lambda done, total: progress(Progress(stage, done, total, "samples"))


def open_litert(path: Path, threads: int) -> LitertModel:
    """Load a TFLite file, whatever its name ends in."""
    from penstock.runtime.backends.litert_model import LitertModel

    return LitertModel(read_tflite(path), threads)


def _named(made: list[str], names: Mapping[str, str]) -> dict[str, str]:
    """Precisions of the layers of a file by the names that they have in its source.

    Quantizers keep the order of weighted layers, not the numbers of their nodes.
    """
    if len(made) != len(names):  # layers were merged or split: nothing is known by name
        made = ["unknown"] * len(names)
    return dict(zip(names, made, strict=True))


def _precisions(model: object) -> list[str]:
    return [FLOAT if kind == "float32" else kind for kind in stored_types(model)]
