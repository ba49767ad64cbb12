"""What `penstock export litert` calls: an exported program is converted, a TFLite file repaired.

export_litert_file("model.pt2", "model.tflite")
export_litert_file("old.tflite", "repaired.tflite")
export_litert_file("model.pt2", "small.tflite", recipe="weight-int8", data=DataPaths(photos))
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError, UsageError
from penstock.export.artifact_check import check_artifact
from penstock.export.artifact_report import ArtifactReport, Gate, Metric
from penstock.export.dataset import Dataset, synthetic
from penstock.export.gates import Floors, GateError, with_gates
from penstock.export.litert.attached_files import carry_over
from penstock.export.litert.convert import export_litert
from penstock.export.litert.flatbuffer_model import read_model
from penstock.export.litert.flatbuffer_writer import serialize
from penstock.export.litert.quantize import (
    open_litert,
    quantize_tflite,
)
from penstock.export.litert.repair import repair
from penstock.export.precision_search import PrecisionSearch
from penstock.export.quantization_job import NOISE_SAMPLES
from penstock.export.quantize import DataPaths
from penstock.export.report import ProgressCallback
from penstock.export.stage_clock import StageClock
from penstock.export.target_file import check_target
from penstock.loaders.file_kind import TFLITE, file_kind
from penstock.loaders.partial_file import partial_file
from penstock.loaders.tensor_graph import TensorSpec

StrPath = str | os.PathLike[str]
SAME_DB = 120.0  # rounding of float32 is at about 140


def export_litert_file(
    source: StrPath,
    out: StrPath,
    *,
    recipe: str | None = None,
    data: DataPaths | None = None,
    floors: Floors | None = None,
    search: PrecisionSearch | None = None,
    samples: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ArtifactReport:
    """Make a TFLite file of a model file.

    Args:
        source: an exported program, *.pt2, whose sample inputs give the shapes; or a TFLite file,
            which is repaired: see `penstock.export.litert.repair`.
        recipe: to quantize it too; see `penstock.export.litert.recipes`.
        data: what it is calibrated and measured on.

    The other arguments, and what is raised: `quantize_tflite` and `export_litert`.

    Raises:
        UsageError: the source is neither.
    """
    source, out, data = Path(source), Path(out), data or DataPaths()
    if recipe is None and search is not None and search.wanted:
        recipe = "weight-int8"
    common: dict[str, Any] = {
        "floors": floors, "search": search, "samples": samples, "threads": threads,
        "overwrite": overwrite, "progress": progress,
    }  # fmt: skip
    if file_kind(source) == TFLITE:
        check_target(source, out, overwrite, ".tflite", "a TFLite model")
        graph, model = read_model(source)
        calibration, evaluation = data.open(graph.inputs)
        if recipe is None:
            given = evaluation or calibration or synthetic(graph.inputs, NOISE_SAMPLES)
            return _repaired(source, out, graph.size, model, graph, given, floors or Floors())
        return quantize_tflite(
            source, out, recipe, calibration=calibration, evaluation=evaluation, **common
        )
    if source.suffix.lower() != ".pt2":
        raise UsageError(
            f"{source}: expected a TFLite file, or a program that torch.export.save wrote, *.pt2; "
            "of a torch module in Python: penstock.export.litert.convert.export_litert"
        )
    from penstock.export.pt2_file import load_pt2

    program = load_pt2(source)
    inputs = _sample_inputs(source, program)
    calibration, evaluation = data.open(_specs(program, inputs))
    return export_litert(
        program,
        inputs,
        out,
        recipe=recipe,
        calibration=calibration,
        evaluation=evaluation,
        name=str(source),
        **common,
    )


def _repaired(
    source: Path, out: Path, size: int, model: Any, graph: Any, data: Dataset, floors: Floors
) -> ArtifactReport:
    """Write the repaired file; it must compute what it did."""
    clock = StageClock()
    with clock("repair"):
        notes = repair(model, graph)
        if not notes:
            raise UsageError(
                f"{source}: there is nothing to repair; give a recipe (--recipe) to quantize it"
            )
        content, attached = carry_over(source, serialize(model))
    with partial_file(out) as (handle, written):
        handle.write(content)
        handle.flush()
        with clock("check"):
            checked = check_artifact(source, written, out, open_litert, data)
        report = ArtifactReport(
            source=str(source),
            artifact=str(out),
            target="litert",
            recipe="repair",
            source_bytes=size,
            artifact_bytes=len(content),
            metrics=checked.metrics,
            latency_before=checked.before,
            latency_after=checked.after,
            gates=(*checked.gates, *_unchanged(checked.metrics)),
            notes=(*notes, *attached),
            seconds=clock.seconds,
        )
        report = with_gates(report, floors, shrinks=False)
        if not report.passed:
            raise GateError(report)
    return report


def _unchanged(metrics: tuple[Metric, ...]) -> list[Gate]:
    """A repair changes no output."""
    return [
        Gate("computes the same", m.after >= SAME_DB, f"SQNR {m.after:.0f} dB to the source")
        for m in metrics
        if m.name == "sqnr_db"
    ]


def _sample_inputs(source: Path, program: Any) -> tuple[Any, ...]:
    """What the program was exported with.

    Raises:
        UsageError: it has none, or named ones.
    """
    found = program.example_inputs
    args, named = found if found else ((), {})
    if named or not args:
        raise UsageError(
            f"{source}: it has {'named' if named else 'no'} sample inputs; export it with "
            "torch.export.export(module, (inputs...)), which keeps them for the shapes"
        )
    return tuple(args)


def _specs(program: Any, inputs: tuple[Any, ...]) -> tuple[TensorSpec, ...]:
    names = [str(name) for name in program.graph_signature.user_inputs]
    try:
        arrays = [tensor.detach().numpy() for tensor in inputs]
    except (AttributeError, TypeError, RuntimeError) as error:
        raise PenstockError(f"a sample input is no array: {error}") from None
    if len(names) != len(arrays):
        raise UsageError(f"{len(arrays)} sample inputs for inputs {', '.join(names)}")
    return tuple(
        TensorSpec(name, str(array.dtype), tuple(array.shape))
        for name, array in zip(names, arrays, strict=True)
    )
