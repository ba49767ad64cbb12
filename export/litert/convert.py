"""Torch models as TFLite files: converted by litert-torch, held against torch, quantized too.

    report = export_litert(module, (torch.rand(1, 3, 96, 96),), "m.tflite", recipe="weight-int8")

Inputs and outputs have the names of the module's `forward` and of the dict that it returns.
"""

from __future__ import annotations

import inspect
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import (
    BackendMissingError,
    PenstockError,
    UnsupportedModelError,
    UsageError,
)
from penstock.export.artifact_report import ArtifactReport, Gate, Metric
from penstock.export.comparison import OutputScore, measure_latency
from penstock.export.dataset import Dataset, Sample
from penstock.export.gates import Floors, GateError, with_gates
from penstock.export.litert.flatbuffer_model import parse, text
from penstock.export.litert.flatbuffer_writer import serialize
from penstock.export.litert.quantize import open_litert, quantize_tflite
from penstock.export.litert.quiet import quiet
from penstock.export.litert.recipes import litert_recipe
from penstock.export.litert.repair import SIGNATURE, name_signature, repair
from penstock.export.precision_search import PrecisionSearch
from penstock.export.report import ProgressCallback
from penstock.export.stage_clock import StageClock
from penstock.export.target_file import check_target
from penstock.loaders.partial_file import partial_file
from penstock.loaders.tflite_file import read_tflite

TOLERANCE = 1e-4  # of the largest output, where that is over 1
RANDOM_SAMPLES = 3
LOWERING = re.compile(r"Lowering not found: (\S+)")
EXECUTING, TARGET = "While executing", re.compile(r"target=torch\.ops\.([\w.]+)")  # torch's words


def export_litert(
    module: Any,
    example_inputs: Sequence[Any],
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    calibration: Dataset | None = None,
    evaluation: Dataset | None = None,
    floors: Floors | None = None,
    search: PrecisionSearch | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    samples: int | None = None,
    name: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ArtifactReport:
    """Convert a torch module to a TFLite file, and quantize it if a recipe is given.

    The float file is held against torch on the example and on random inputs of its shapes; it is
    refused where an output differs by more than 1e-4 of the largest.

    Args:
        module: a `torch.nn.Module`, converted in evaluation mode, or an `ExportedProgram`.
        example_inputs: tensors or arrays, of the shapes that the file will have.
        recipe: see `penstock.export.litert.recipes`; None: float.
        calibration, evaluation, search, samples: see `quantize_tflite`; with a recipe.
        floors: what the artifact must hold; `min_ratio` is against the float file.
        input_names, output_names: in order; None: of `forward`'s arguments, and of the outputs
            where they are a dict.
        name: of the source, in the report; None: of the module's class.

    Raises:
        GateError: the artifact was refused; nothing was written.
        UnsupportedModelError: operators that litert-torch cannot lower, by name.
        UsageError: an argument.
        PenstockError: litert-torch fails.
        BackendMissingError: litert-torch, torch or LiteRT is not installed.
        StorageError.
    """
    out = Path(out)
    check_target(Path(os.devnull), out, overwrite, ".tflite", "a TFLite model")
    if recipe is not None:
        litert_recipe(recipe)
    clock = StageClock()
    model = _TorchModel.of(module, example_inputs, name)
    with clock("conversion"):
        content = _named(model, model.converted(), input_names, output_names)
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        float_file = Path(folder) / "float.tflite"
        float_file.write_bytes(content)
        with clock("comparison with torch"):
            gate, metrics = model.compared(float_file)
        report = ArtifactReport(
            source=model.name,
            artifact=str(out),
            target="litert",
            recipe="float",
            source_bytes=model.nbytes,
            artifact_bytes=len(content),
            metrics=metrics,
            gates=(gate,),
            notes=_fixed_shapes(module, model.arrays),
            seconds=clock.seconds,
        )
        if not gate.passed:
            raise GateError(report)
        if recipe is None:
            return _kept(report, model, content, out, floors or Floors())
        refused = None
        try:
            quantized = quantize_tflite(
                float_file,
                out,
                recipe,
                calibration=calibration,
                evaluation=evaluation,
                floors=floors,
                search=search,
                samples=samples,
                threads=threads,
                overwrite=overwrite,
                progress=progress,
            )
        except GateError as error:
            quantized, refused = error.report, error
    whole = replace(
        quantized,
        source=report.source,
        gates=(gate, *quantized.gates),
        metrics=(*metrics[:1], *quantized.metrics),
        notes=(*report.notes, *quantized.notes),
        seconds=clock.seconds | quantized.seconds,
    )
    if refused is not None:
        raise GateError(whole) from None
    return whole


def _fixed_shapes(module: Any, arrays: tuple[NDArray[Any], ...]) -> tuple[str, ...]:
    """A note where the program leaves sizes open: litert-torch takes those of its sample."""
    if not getattr(module, "range_constraints", None):
        return ()
    shapes = ", ".join(str(list(array.shape)) for array in arrays)
    return (f"the program leaves sizes open; the file has those of the sample inputs: {shapes}",)


def _kept(
    report: ArtifactReport, model: _TorchModel, content: bytes, out: Path, floors: Floors
) -> ArtifactReport:
    with partial_file(out) as (handle, written):
        handle.write(content)
        handle.flush()
        with open_litert(written, 1) as made:
            names = [spec.name for spec in made.inputs]
            sample = Sample("example", dict(zip(names, model.arrays, strict=True)))
            (latency,) = measure_latency([made], sample)
        loads = Gate("loads", True, "loaded back and run")
        report = replace(report, latency_after=latency, gates=(loads, *report.gates))
        report = with_gates(report, floors, shrinks=False)
        if not report.passed:
            raise GateError(report)
    return report


@dataclass(frozen=True)
class _TorchModel:
    """A module with the inputs it is converted for.

    Attributes:
        name: of the file that it came in, or of its class.
        arrays: the inputs.
        input_names: of `forward`, where it has as many arguments.
    """

    module: Any
    inputs: tuple[Any, ...]
    arrays: tuple[NDArray[Any], ...]
    name: str
    input_names: tuple[str, ...] | None

    @classmethod
    def of(cls, module: Any, example_inputs: Sequence[Any], name: str | None) -> _TorchModel:
        """Check what was given.

        Raises:
            UsageError: it is no module, or an input is no tensor or array.
            BackendMissingError: torch is not installed.
        """
        torch = _torch()
        kind = type(module).__name__
        input_names = None
        if isinstance(module, torch.export.ExportedProgram):
            names = module.graph_signature.user_inputs
            input_names = tuple(str(name) for name in names)
            module = module.module()
        elif isinstance(module, torch.nn.Module):
            parameters = inspect.signature(module.forward).parameters.values()
            plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            input_names = tuple(p.name for p in parameters if p.kind in plain)
        else:
            raise UsageError(f"a {kind} was given, expected a torch.nn.Module or ExportedProgram")
        tensors = []
        for index, value in enumerate(example_inputs):
            value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            if not isinstance(value, torch.Tensor):
                raise UsageError(
                    f"example input {index} is a {type(value).__name__}, expected a tensor or array"
                )
            tensors.append(value.detach().cpu())
        if not tensors:
            raise UsageError("no example inputs: the file's shapes come from them")
        arrays = tuple(tensor.numpy() for tensor in tensors)
        names = (input_names or ())[: len(tensors)]
        given = names if len(names) == len(tensors) else None
        return cls(module, tuple(tensors), arrays, name or kind, given)

    @property
    def nbytes(self) -> int:
        """Of parameters and buffers."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def converted(self) -> bytes:
        """The float file as litert-torch writes it.

        Raises:
            UnsupportedModelError, PenstockError, BackendMissingError.
        """
        with quiet(native=True):
            try:
                import litert_torch
            except ImportError as error:
                raise BackendMissingError(
                    f"torch models are converted by litert-torch, which cannot be imported "
                    f"({error}); install it with: pip install 'penstock[litert-export]'"
                ) from None
            try:
                with _evaluating(self.module):
                    edge = litert_torch.convert(self.module, self.inputs)
                return bytes(edge.model_content())
            except Exception as error:  # the library raises what it comes upon
                raise _conversion_error(self.name, error) from None

    def run(self, inputs: Sequence[Any]) -> list[NDArray[Any]]:
        """Outputs in their order, of nested ones too."""
        leaves, _ = _torch().utils._pytree.tree_flatten(self._outputs(inputs))
        return [leaf.detach().cpu().numpy() for leaf in leaves]

    def output_names(self) -> list[str] | None:
        """Keys, where the outputs are a dict of tensors."""
        outputs, tensor = self._outputs(self.inputs), _torch().Tensor
        if isinstance(outputs, dict) and all(isinstance(v, tensor) for v in outputs.values()):
            return [str(key) for key in outputs]
        return None

    def _outputs(self, inputs: Sequence[Any]) -> Any:
        with _evaluating(self.module), _torch().no_grad():
            return self.module(*[tensor.clone() for tensor in inputs])

    def compared(self, file: Path) -> tuple[Gate, tuple[Metric, ...]]:
        """Outputs of the file against torch's, on the example and random inputs."""
        torch = _torch()
        generator = torch.Generator().manual_seed(0)
        trials = [self.inputs] + [
            tuple(
                torch.randn(t.shape, generator=generator, dtype=t.dtype)
                if t.dtype.is_floating_point
                else t
                for t in self.inputs
            )
            for _ in range(RANDOM_SAMPLES)
        ]
        worst, score = 0.0, OutputScore()
        with open_litert(file, 1) as made:
            names = [spec.name for spec in made.inputs]
            for trial in trials:
                fed = {n: t.numpy() for n, t in zip(names, trial, strict=True)}
                seen = list(made.run(fed).values())
                wanted = self.run(trial)
                if [a.shape for a in seen] != [a.shape for a in wanted]:
                    detail = f"outputs {[a.shape for a in seen]}, torch {[a.shape for a in wanted]}"
                    return Gate("equals torch", False, detail), ()
                for x, y in zip(wanted, seen, strict=True):
                    scale = max(1.0, float(np.abs(x).max(initial=0.0)))
                    error = np.abs(x.astype(np.float64) - y).max(initial=0.0) / scale
                    worst = max(worst, float(error) if np.isfinite(error) else np.inf)
                    score.add(x, y)
        detail = f"largest difference {worst:.1e} over {len(trials)} runs, at most {TOLERANCE:g}"
        metrics = (
            Metric("error_to_torch", None, worst, len(trials), higher_is_better=False),
            Metric("sqnr_db", None, score.sqnr_db, len(trials)),
        )
        return Gate("equals torch", worst <= TOLERANCE, detail), metrics


def _named(
    model: _TorchModel,
    content: bytes,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> bytes:
    """The file with names for people in its signature."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        file = Path(folder) / "converted.tflite"
        file.write_bytes(content)
        graph = read_tflite(file)
    objects = parse(content, model.name)
    repair(objects, graph)
    key = text(objects.signatureDefs[0].signatureKey) or SIGNATURE
    sides = []
    for side, given, known, specs in (
        ("input", input_names, model.input_names, graph.inputs),
        ("output", output_names, model.output_names(), graph.outputs),
    ):
        names = list(given or known or [spec.name for spec in specs])
        if given is None and len(names) != len(specs):
            names = [spec.name for spec in specs]
        if len(names) != len(specs) or len(set(names)) < len(names):
            raise UsageError(
                f"{side} names {names}: expected {len(specs)} different ones, in the order of the "
                f"module's {side}s"
            )
        sides.append(names)
    name_signature(objects, key, sides[0], sides[1])
    return serialize(objects)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise BackendMissingError(
            f"torch cannot be imported ({error}); install it with: "
            "pip install 'penstock[litert-export]'"
        ) from None
    return torch


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """In evaluation mode, and then each part as it was. Exported programs have no mode."""
    modes = [(part, part.training) for part in module.modules()]
    with suppress(NotImplementedError):
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _conversion_error(name: str, error: Exception) -> PenstockError:
    message = str(error)
    missing = LOWERING.findall(message)
    if missing:
        return UnsupportedModelError(
            f"{name}: litert-torch cannot lower {', '.join(sorted(set(missing)))}; replace it in "
            "the module, or export to ONNX"
        )
    reason, _, place = message.partition(EXECUTING)
    operator = TARGET.search(place)
    where = f" at {operator[1]}" if operator else ""
    what = " ".join(reason.split())[:400]
    return PenstockError(f"{name}: litert-torch failed{where}: {type(error).__name__}: {what}")
