"""Quantize an ONNX or TFLite model; what `penstock quantize` calls.

quantize_model("model.onnx", "small.onnx", "static-int8", calibration="photos/")
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import UsageError
from penstock.export.artifact_report import ArtifactReport
from penstock.export.dataset import Dataset, Preprocessing, open_dataset
from penstock.export.gates import Floors
from penstock.export.precision_search import PrecisionSearch
from penstock.export.report import ProgressCallback
from penstock.loaders.file_kind import GGUF, ONNX, file_kind
from penstock.loaders.tensor_graph import TensorSpec

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class DataPaths:
    """Where data comes from; see `penstock.export.dataset`.

    Attributes:
        calibration: folder of images or .npz that ranges come from.
        evaluation: the same, that the report is measured on.
        labels: CSV of the evaluation images; without those, of the calibration images.
        preprocessing: of images.
    """

    calibration: Path | None = None
    evaluation: Path | None = None
    labels: Path | None = None
    preprocessing: Preprocessing | None = None

    def open(self, inputs: tuple[TensorSpec, ...]) -> tuple[Dataset | None, Dataset | None]:
        """Calibration and evaluation data for a model with these inputs.

        Raises:
            UsageError, FormatError: see `open_dataset`; labels, or preprocessing, of nothing.
        """
        if self.labels is not None and self.evaluation is None and self.calibration is None:
            raise UsageError(f"{self.labels}: labels of which images? Give a folder of them too")
        given = [path for path in (self.calibration, self.evaluation) if path is not None]
        folders = any(path.is_dir() for path in given)
        if self.preprocessing not in (None, Preprocessing()) and given and not folders:
            raise UsageError(
                f"{given[0]}: range, mean, std, colours and resizing are of images; an .npz holds "
                "what the model takes"
            )
        opened: list[Dataset | None] = []
        for path, labels in (
            (self.calibration, self.labels if self.evaluation is None else None),
            (self.evaluation, self.labels),
        ):
            images = path is not None and path.is_dir()
            opened.append(
                None
                if path is None
                else open_dataset(
                    path,
                    inputs,
                    labels=labels,
                    preprocessing=self.preprocessing if images else None,
                )
            )
        return opened[0], opened[1]


def quantize_model(
    source: StrPath,
    out: StrPath,
    recipe: str | None = None,
    *,
    data: DataPaths | None = None,
    floors: Floors | None = None,
    search: PrecisionSearch | None = None,
    samples: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ArtifactReport:
    """Quantize a model by what kind of file it is.

    Args:
        recipe: None: `static-int8` where calibration data is given, else `dynamic-int8`; of a
            TFLite model whose layers are ranked or mixed, `weight-int8`.

    The other arguments, and what is raised: `penstock.export.onnx.quantize.quantize_onnx` and
    `penstock.export.litert.quantize.quantize_tflite`.
    """
    from penstock.runtime.backends.open_model import read_graph

    data = data or DataPaths()
    kind = file_kind(source)
    if kind == GGUF and Path(source).suffix.lower() != ".onnx":
        raise UsageError(
            f"{source}: expected an ONNX or TFLite model, *.onnx or *.tflite; GGUF files are "
            "quantized by: penstock export gguf SOURCE OUT --type Q4_K"
        )
    calibration, evaluation = data.open(read_graph(source).inputs)
    if recipe is None:
        recipe = "dynamic-int8" if calibration is None else "static-int8"
        if kind != ONNX and search is not None and search.wanted:
            recipe = "weight-int8"
    quantize: Callable[..., ArtifactReport]
    if kind == ONNX:
        from penstock.export.onnx.quantize import quantize_onnx as quantize
    else:
        from penstock.export.litert.quantize import quantize_tflite as quantize
    return quantize(
        source,
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
