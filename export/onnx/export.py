"""ONNX files from torch modules, exported programs, image classifiers and older ONNX files.

export_onnx(module, "m.onnx", example_inputs=(torch.rand(1, 3, 96, 96),))
export_onnx("model.pt2", "small.onnx", recipe="static-int8", data=DataPaths(Path("photos")))
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.errors import BackendMissingError, PenstockError, UsageError
from penstock.export.artifact_check import Checked, Open, check_artifact
from penstock.export.artifact_report import ArtifactReport, Gate
from penstock.export.dataset import Dataset, synthetic
from penstock.export.gates import Floors, GateError, with_gates
from penstock.export.onnx.libraries import quiet_libraries
from penstock.export.onnx.preparation import prepare_model, without_shapes
from penstock.export.onnx.quantize import (
    open_onnx,
    quantize_onnx,
    serialized,
)
from penstock.export.onnx.torch_model import (
    Examples,
    TorchModel,
    TorchSource,
    set_training,
    torch_source,
)
from penstock.export.precision_search import PrecisionSearch
from penstock.export.quantization_job import NOISE_SAMPLES
from penstock.export.quantize import DataPaths
from penstock.export.report import ProgressCallback
from penstock.export.stage_clock import StageClock
from penstock.export.target_file import check_target
from penstock.loaders.cores import compute_threads
from penstock.loaders.onnx_file import read_onnx, read_onnx_bytes
from penstock.loaders.partial_file import partial_file
from penstock.loaders.tensor_graph import TensorGraph, TensorSpec

OPSET = 20
SAME_DB = 80.0
"""Of a file that computes what its source does: rounding of float32 is at about 120."""
SAME = "computes the same"  # the gate
DEFAULT_RECIPE = "static-int8"


def export_onnx(
    source: Any,
    out: str | os.PathLike[str],
    *,
    example_inputs: Sequence[Any] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    opset: int = OPSET,
    recipe: str | None = None,
    data: DataPaths | None = None,
    floors: Floors | None = None,
    search: PrecisionSearch | None = None,
    samples: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ArtifactReport:
    """Write an ONNX file, quantized if a recipe is given, and hold it against its source.

    Args:
        source: a `torch.nn.Module` or an `ExportedProgram`; or a path: of a program that
            `torch.export.save` wrote (*.pt2), of an ONNX file, which is cleaned (constants folded,
            shapes inferred, opset raised; it is refused where nothing is to be cleaned), or of the
            Hugging Face folder of an image classifier.
        example_inputs: of a torch module; tensors or arrays, in order.
        input_names, output_names: None: as `forward` has them, and as torch names outputs.
        dynamic_shapes: as `torch.export` takes them; of a module.
        opset: of the operators, at the least.
        recipe, data, search, samples: see `quantize_model`.
        floors: what the artifact must hold.

    Raises:
        GateError: the artifact was refused; nothing was written.
        UsageError: an argument, or the source is none of these.
        FormatError, UnsupportedModelError: the source is damaged, or cannot be exported; a *.pt2
            that cannot be loaded without running what is in it.
        PenstockError: the exporter or the quantizer fails.
        BackendMissingError, StorageError.
    """
    out, data, floors = Path(out), data or DataPaths(), floors or Floors()
    if recipe is None and search is not None and search.wanted:
        recipe = DEFAULT_RECIPE
    keywords: dict[str, Any] = {
        "floors": floors, "search": search, "samples": samples, "threads": threads,
        "overwrite": overwrite, "progress": progress,
    }  # fmt: skip
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    check_target(path or Path(os.devnull), out, overwrite, ".onnx", "an ONNX model")
    clock, cores = StageClock(), compute_threads(threads)
    with tempfile.TemporaryDirectory(prefix="penstock-onnx-") as folder:
        if path is not None and path.suffix.lower() == ".onnx":
            name, nbytes, original = str(path), read_onnx(path).size, path
            opened: Open = open_onnx
            examples = None
        else:
            torch_model = _torch_source(source, path, example_inputs, input_names)
            original = Path(folder) / "float.onnx"
            with clock("export"):
                _convert(torch_model, original, output_names, dynamic_shapes, opset)
            name, nbytes = torch_model.name, torch_model.nbytes
            opened, examples = _opener(torch_model, original), Examples(torch_model)
        with clock("preparation"):
            prepared = prepare_model(original, opset)
        content = serialized(without_shapes(prepared.model), out)
        graph = read_onnx(original)
        calibration, evaluation = data.open(graph.inputs)
        report = ArtifactReport(
            source=name,
            artifact=str(out),
            target="onnx",
            recipe="float",
            source_bytes=nbytes,
            artifact_bytes=len(content),
            gates=_cleaned(graph, content) if original == path and recipe is None else (),
            notes=prepared.notes,
            seconds=clock.seconds,
        )
        cleaned = out if recipe is None else Path(folder) / "cleaned.onnx"
        given: Dataset = evaluation or calibration or examples or _noise(graph.inputs)
        with partial_file(cleaned) as (handle, written):
            handle.write(content)
            handle.flush()
            with clock("check"):
                checked = check_artifact(
                    original, written, out, opened, given,
                    limit=NOISE_SAMPLES if recipe is not None else None, threads=cores,
                )  # fmt: skip
            report = _checked(report, checked, given, floors if recipe is None else Floors())
        if recipe is None:
            return report
        refused = None
        try:
            quantized = quantize_onnx(
                cleaned,
                out,
                recipe,
                calibration=calibration,
                evaluation=evaluation or (examples if calibration is None else None),
                **keywords,
            )
        except GateError as error:
            quantized, refused = error.report, error
    whole = replace(
        quantized,
        source=name,
        gates=(*(g for g in report.gates if g.name == SAME), *quantized.gates),
        notes=(*report.notes, *quantized.notes),
        seconds=clock.seconds | quantized.seconds,
    )
    if refused is not None:
        raise GateError(whole) from None
    return whole


def _cleaned(graph: TensorGraph, content: bytes) -> tuple[Gate, ...]:
    """Whether anything was done to an ONNX file."""
    after = read_onnx_bytes(graph.path, content)
    done = [
        name
        for name, changed in (
            ("operators", after.operators != graph.operators),
            ("opset", after.opsets != graph.opsets),
            ("size", after.size < graph.size),
        )
        if changed
    ]
    if not done:
        return (Gate("changed", False, "there is nothing to clean; give a recipe to quantize it"),)
    return (Gate("changed", True, f"{', '.join(done)} cleaned"),)


def _noise(inputs: tuple[TensorSpec, ...]) -> Dataset:
    return synthetic(inputs, NOISE_SAMPLES)


def _checked(
    report: ArtifactReport, checked: Checked, data: Dataset, floors: Floors
) -> ArtifactReport:
    """The report of a float file, or GateError."""
    same = [
        Gate(SAME, m.after >= SAME_DB, f"SQNR {m.after:.0f} dB to the source on {data.name}")
        for m in checked.metrics
        if m.name == "sqnr_db"
    ]
    report = replace(
        report,
        metrics=checked.metrics,
        latency_before=checked.before,
        latency_after=checked.after,
        gates=(*checked.gates, *report.gates, *same),
    )
    report = with_gates(report, floors, shrinks=False)
    if not report.passed:
        raise GateError(report)
    return report


def _torch_source(
    source: Any,
    path: Path | None,
    example_inputs: Sequence[Any] | None,
    input_names: Sequence[str] | None,
) -> TorchSource:
    if path is None:
        return torch_source(source, example_inputs, input_names)
    if path.is_dir():
        from penstock.export.onnx.image_classifier import load_classifier

        module, example = load_classifier(path)
        return torch_source(module, example_inputs or (example,), input_names, str(path))
    if path.suffix.lower() == ".pt2":
        from penstock.export.pt2_file import load_pt2

        return torch_source(load_pt2(path), example_inputs, input_names, str(path))
    raise UsageError(
        f"{path}: expected an ONNX file, a program that torch.export.save wrote (*.pt2), or the "
        "folder of an image classifier; of a torch module in Python: export_onnx(module, ...)"
    )


def _convert(
    model: TorchSource, out: Path, output_names: Sequence[str] | None, dynamic: Any, opset: int
) -> None:
    """Write the file that torch makes."""
    import torch

    try:
        import onnxscript  # noqa: F401 - torch asks for it late, with an error of its own
    except ImportError as error:
        raise BackendMissingError(
            f"torch exports ONNX with onnxscript, which cannot be imported ({error}); install it "
            "with: pip install 'penstock[export]'"
        ) from None
    was = set_training(model.module, False)
    try:
        with quiet_libraries():
            program = torch.onnx.export(
                model.program,
                model.inputs,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=list(model.input_names),
                output_names=None if output_names is None else list(output_names),
                dynamic_shapes=dynamic,
            )
            assert program is not None
            program.save(str(out), external_data=False)
    except Exception as error:  # the exporter raises what it comes upon
        what = " ".join(str(error).split())[:400]
        raise PenstockError(
            f"{model.name}: torch could not export it: {type(error).__name__}: {what}"
        ) from None
    finally:
        set_training(model.module, was)


def _opener(model: TorchSource, original: Path) -> Open:
    """Opens the module under the name of the file that was made of it, and files as they are."""
    outputs = read_onnx(original).outputs

    def opened(path: Path, threads: int) -> Any:
        return TorchModel(model, outputs, threads) if path == original else open_onnx(path, threads)

    return opened
