"""Open an ONNX or TFLite file with the backend that runs it."""

from __future__ import annotations

import os
from pathlib import Path

from penstock.errors import FormatError
from penstock.loaders.cores import compute_threads
from penstock.loaders.file_kind import ONNX, TFLITE, file_kind
from penstock.loaders.onnx_file import read_onnx
from penstock.loaders.tensor_graph import TensorGraph
from penstock.loaders.tflite_file import read_tflite
from penstock.runtime.backends.litert_model import LitertModel
from penstock.runtime.backends.onnx_model import OnnxModel


def open_model(
    path: str | os.PathLike[str], *, threads: int | None = None
) -> OnnxModel | LitertModel:
    """Load an ONNX or TFLite model; `penstock.load` does so too.

    The file is checked before a library sees it: what is damaged is an error, not a crash.

    Args:
        path: the file. Files beside it that an ONNX model names must be in its folder.
        threads: of compute; None: all cores.

    Raises:
        FormatError: damaged, cut short, or neither ONNX nor TFLite.
        UnsupportedModelError: operators that the library does not have, listed by name.
        BackendMissingError: the library is not installed.
        StorageError, UsageError.
    """
    threads = compute_threads(threads)
    graph = read_graph(path)
    backend = OnnxModel if graph.format == ONNX else LitertModel
    return backend(graph, threads)


def read_graph(path: str | os.PathLike[str]) -> TensorGraph:
    """What an ONNX or TFLite file holds, checked; needs no library.

    Raises:
        FormatError, StorageError.
    """
    kind = file_kind(path)
    if kind == ONNX:
        return read_onnx(path)
    if kind == TFLITE:
        return read_tflite(path)
    raise FormatError(f"{Path(path)}: expected an ONNX or TFLite model, *.onnx or *.tflite")
