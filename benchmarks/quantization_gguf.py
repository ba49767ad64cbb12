"""K-quants and whole GGUF files: ours beside llama.cpp's own quantizer, on trained weights.

`benchmarks/quantization.py` prints what the functions here return.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.export.artifact_report import Metric
from penstock.export.gguf.evaluation import LlamaFile, compare_files
from penstock.export.gguf.export import export_gguf
from penstock.export.gguf.tensor_types import FILE_TYPES, decode
from penstock.export.gguf.weights import GgufWeights
from penstock.export.texts import read_text
from penstock.quant.k_quants import K_FORMATS, encode_q4_k, encode_q5_k, encode_q6_k

SOURCE = Path("models/storyteller-start")  # trained, 6.9 million parameters; in the shared folder
MIX = "mix in the size of llama.cpp's {}"
ENCODERS = {"Q4_K": encode_q4_k, "Q5_K": encode_q5_k, "Q6_K": encode_q6_k}

Encode = Callable[[NDArray[np.float32], NDArray[np.float32] | None], NDArray[np.uint8]]


@dataclass(frozen=True)
class ErrorRow:
    """All matrices of the model in one format.

    Attributes:
        weighted: with an importance matrix (mean squares, drawn at random).
        error: sum of the squared errors, weighted, over llama.cpp's.
        tensors: matrices; worse: those of which our error is greater.
        speed, their_speed: MB of float32 a second, one thread.
    """

    type_name: str
    weighted: bool
    error: float
    tensors: int
    worse: int
    speed: float
    their_speed: float


@dataclass(frozen=True)
class FileRow:
    """One file, held against the F16 one in llama.cpp.

    Attributes:
        metrics: `perplexity` (before: of the F16 file), `mean_kl`, `same_top1`.
    """

    who: str
    recipe: str
    nbytes: int
    ratio: float
    metrics: tuple[Metric, ...]

    def metric(self, name: str) -> float:
        return next(metric.after for metric in self.metrics if metric.name == name)


def error_rows(shared: Path, names: Sequence[str] = tuple(ENCODERS)) -> list[ErrorRow]:
    """Errors and speed of the encoders on the model's matrices."""
    library = _ggml()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        matrices = _matrices(_float_file(shared, Path(folder)))
    rows = []
    for name in names:
        for weighted in (False, True):
            rows.append(_error_row(name, weighted, matrices, library))
    return rows


def file_rows(
    shared: Path,
    names: Sequence[str] = tuple(ENCODERS),
    tokens: int = 4096,
    threads: int = 1,
) -> list[FileRow]:
    """Whole files: ours, ours in the size of llama.cpp's by a mix, and llama.cpp's."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        work = Path(folder)
        source = _float_file(shared, work)
        made: list[tuple[str, str, Path]] = []
        for name in names:
            ours, theirs = work / f"ours-{name}.gguf", work / f"theirs-{name}.gguf"
            export_gguf(source, ours, name, evaluate=False, threads=threads)
            made.append(("penstock", name, ours))
            _quantize_with_llama(source, theirs, name)
            made.append(("llama.cpp", f"{name}, its own mix of types", theirs))
            mix = work / f"mix-{name}.gguf"
            size = theirs.stat().st_size
            export_gguf(source, mix, target_size=size, evaluate=False, threads=threads)
            made.append(("penstock", MIX.format(name), mix))
        text = read_text(None, "evaluation.txt")
        rows = []
        for who, recipe, path in made:
            with LlamaFile(source, threads) as before, LlamaFile(path, threads) as after:
                found = compare_files(before, after, text, tokens, runs=1)
            size = path.stat().st_size
            rows.append(FileRow(who, recipe, size, source.stat().st_size / size, found.metrics))
    return rows


def missed_bars(errors: Sequence[ErrorRow], files: Sequence[FileRow]) -> list[str]:
    """What is not as it should be, in words; empty where all is."""
    missed = [
        f"{row.type_name}{' weighted' if row.weighted else ''}: {row.worse} of {row.tensors} "
        f"tensors have a greater error than llama.cpp's, {row.error:.3f} of it in all"
        for row in errors
        if row.worse or row.error > 1
    ]
    for theirs in (row for row in files if row.who == "llama.cpp"):
        ours = next(row for row in files if row.recipe == MIX.format(theirs.recipe.split(",")[0]))
        if ours.nbytes > theirs.nbytes or ours.metric("mean_kl") > theirs.metric("mean_kl"):
            missed.append(
                f"{ours.recipe}: {ours.nbytes} bytes, divergence {ours.metric('mean_kl'):.5f}; "
                f"llama.cpp's {theirs.nbytes} bytes, {theirs.metric('mean_kl'):.5f}"
            )
    return missed


def _float_file(shared: Path, work: Path) -> Path:
    path = work / "f16.gguf"
    export_gguf(shared / SOURCE, path, "F16", evaluate=False, threads=1)
    return path


def _matrices(path: Path) -> list[NDArray[np.float32]]:
    weights = GgufWeights(path)
    return [
        weights.floats(tensor, 0, tensor.rows)
        for tensor in weights.tensors
        if len(tensor.shape) == 2
    ]


def _error_row(
    name: str, weighted: bool, matrices: Sequence[NDArray[np.float32]], library: ctypes.CDLL
) -> ErrorRow:
    rng = np.random.default_rng(0)
    form, nbytes = K_FORMATS[name], sum(matrix.nbytes for matrix in matrices)
    errors, spent = np.zeros((len(matrices), 2)), np.zeros(2)

    def theirs(
        values: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        made = np.zeros((len(values), form.row_bytes(values.shape[1])), np.uint8)
        library.ggml_quantize_chunk(
            form.ggml_type, values.ctypes.data, made.ctypes.data, 0, *values.shape,
            None if weights is None else weights.ctypes.data,
        )  # fmt: skip
        return made

    contenders: tuple[Encode, Encode] = (ENCODERS[name], theirs)
    for row, matrix in enumerate(matrices):
        drawn = np.asarray(rng.chisquare(1, matrix.shape[1]), np.float32)
        columns = drawn if weighted else None
        heavy = drawn.astype(np.float64) if weighted else np.ones(1)
        for place, encode in enumerate(contenders):
            begin = time.perf_counter()
            data = encode(matrix, columns)
            spent[place] += time.perf_counter() - begin
            difference = decode(data, form.ggml_type).astype(np.float64) - matrix
            errors[row, place] = (heavy * difference**2).sum()
    ours, reference = errors.sum(0)
    speed, their_speed = (nbytes / 1e6 / spent).tolist()
    worse = int((errors[:, 0] > errors[:, 1]).sum())
    return ErrorRow(
        name, weighted, float(ours / reference), len(matrices), worse, speed, their_speed,
    )  # fmt: skip


def _ggml() -> ctypes.CDLL:
    """llama.cpp's quantizers, in the library that llama-cpp-python brings."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None, "needs llama-cpp-python"
    (path, *_) = sorted((Path(spec.origin).parent / "lib").glob("libggml-base.*"))
    library = ctypes.CDLL(str(path))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, pointer, pointer, count, count, count, pointer)
    ]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    for form in K_FORMATS.values():
        library.ggml_quantize_init(ctypes.c_int(form.ggml_type))
    return library


def _quantize_with_llama(source: Path, out: Path, name: str) -> None:
    from penstock.runtime.gguf.library import llama

    lib: Any = llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[name]
    params.nthread = 1
    result = lib.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if result != 0:
        raise RuntimeError(f"llama_model_quantize failed with {result}")
