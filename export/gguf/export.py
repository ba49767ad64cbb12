"""`penstock export gguf`: a language model as a quantized GGUF, and what that did to it.

1. plan      a format for each tensor: one for all matrices, or a mix for a target size
2. write     tensor by tensor, row by row: memory does not grow with the model
3. compare   source and artifact in llama.cpp: perplexity, divergence, time of a token
4. gates     what does not load, did not shrink or lost too much is not kept
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from penstock.errors import (
    BackendMissingError,
    FormatError,
    PenstockError,
    UnsupportedModelError,
    UsageError,
)
from penstock.export.artifact_report import ArtifactReport, Gate, TensorError
from penstock.export.gates import Floors, GateError, change_gate, with_gates
from penstock.export.gguf.encoding import ErrorSums, encoded_slabs
from penstock.export.gguf.evaluation import Comparison, LlamaFile, compare_files
from penstock.export.gguf.importance import Importance, read_importance
from penstock.export.gguf.plan import (
    GgufPlan,
    fixed_plan,
    plan_header,
    plan_notes,
    target_plan,
    tensor_entries,
)
from penstock.export.gguf.tensor_types import TypeChoice
from penstock.export.gguf.weights import GgufWeights, Weights, open_weights
from penstock.export.report import Progress, ProgressCallback
from penstock.export.texts import read_text
from penstock.loaders.cores import compute_threads
from penstock.loaders.gguf_file import read_gguf
from penstock.loaders.partial_file import check_writable, partial_file

EVALUATION_TOKENS = 2048
LARGE_TOKENS = 512  # of models above this:
LARGE_BYTES = 1 << 30


def export_gguf(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    matrices: str | None = None,
    *,
    output: str | None = None,
    embedding: str | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    target_size: int | str | None = None,
    evaluate: bool = True,
    evaluation: str | os.PathLike[str] | None = None,
    evaluation_tokens: int | None = None,
    floors: Floors | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ArtifactReport:
    """Write a language model as GGUF.

    Args:
        source: a GGUF of any architecture, or a Hugging Face folder of a llama, arcee or
            nemotron model.
        out: the file to write: whole, or not at all.
        matrices: Q4_K, Q5_K, Q6_K, Q8_0, Q4_0 or F16; None where there is a target size.
        output, embedding: of the output matrix and the token embedding; None: see `TypeChoice`.
        imatrix: importance matrix of `llama-imatrix`, in GGUF; K-quants use it.
        target_size: choose a format for each matrix so that the file is no larger: bytes, or
            '1.5GiB', or '30%' of the source.
        evaluate: load both files in llama.cpp and compare them. A Hugging Face folder is written
            as F16 for that, beside `out`, and removed again.
        evaluation: a text file; None takes the package's.
        evaluation_tokens: at most so many of it; None: 2,048, or 512 of models above 1 GiB.
        floors: what the artifact must hold; metrics are `perplexity`, `mean_kl`, `same_top1`.
        threads: of encoding and of llama.cpp; None: all cores.
        overwrite: whether `out` may exist.

    Raises:
        GateError: the artifact was refused; nothing was kept.
        UsageError: an argument is out of its range, `out` exists, or the target cannot be met.
        FormatError, StorageError, UnsupportedModelError: from the source or the importance matrix.
    """
    target = Path(out)
    choice = _choice(matrices, output, embedding, target_size)
    _check_places(Path(source), target, overwrite)
    text = read_text(evaluation, "evaluation.txt") if evaluate else ""
    weights = open_weights(source)
    importance = None if imatrix is None else read_importance(imatrix)
    workers = compute_threads(threads)
    seconds: dict[str, float] = {}
    with _timed(seconds, "plan"):
        if choice is None:
            from penstock.runtime.budget import parse_size

            assert target_size is not None
            most = parse_size(target_size, weights.source_bytes)
            plan = target_plan(weights, most, importance, workers, progress)
        else:
            plan = fixed_plan(weights, choice)
        notes = plan_notes(weights, plan, importance)
    with partial_file(target) as (handle, temporary):
        with _timed(seconds, "write"):
            tensors = write_gguf(weights, handle, plan, importance, workers, progress)
            handle.flush()
        report = ArtifactReport(
            source=str(source),
            artifact=str(target),
            target="gguf",
            recipe=plan.recipe if imatrix is None else f"{plan.recipe}, importance",
            source_bytes=weights.source_bytes,
            artifact_bytes=temporary.stat().st_size,
            precisions={name: plan.types[name] for name in sorted(plan.matrices)},
            tensors=tuple(tensors),
            gates=(_change_gate(weights, plan),),
            notes=tuple(notes),
        )
        with _timed(seconds, "compare"):
            tokens = evaluation_tokens or _default_tokens(weights)
            report = _compared(report, weights, temporary, text, tokens, workers, progress)
        converted = matrices == "F16" and not isinstance(weights, GgufWeights)
        report = with_gates(
            replace(report, seconds=seconds), floors or Floors(), shrinks=not converted
        )
        if not report.passed:
            raise GateError(report)
    return report


def write_gguf(
    weights: Weights,
    handle: IO[bytes],
    plan: GgufPlan,
    importance: Importance | None,
    threads: int,
    progress: ProgressCallback | None = None,
) -> list[TensorError]:
    """Write a whole file; the error of each tensor that got another format.

    Raises:
        FormatError: a value that its format cannot hold; tensor and row are named.
    """
    handle.write(plan_header(weights, plan, importance))
    done, total = 0, sum(tensor.elements for tensor in weights.tensors)
    found = []
    with ThreadPoolExecutor(threads, "penstock-encode") as pool:
        for tensor, entry in zip(weights.tensors, tensor_entries(weights, plan), strict=True):
            errors, written = ErrorSums(), 0
            columns = None if importance is None else importance.of(tensor)
            wanted = plan.types[tensor.name]
            try:
                for slab in encoded_slabs(weights, tensor, wanted, columns, pool, threads):
                    handle.write(slab.data.data)
                    errors.add(slab.errors)
                    written += slab.data.nbytes
                    done += len(slab.data) * tensor.columns
                    if progress is not None:
                        progress(Progress("write", done, total, "weights"))
            except FormatError as error:
                raise FormatError(f"{weights.path}: tensor '{tensor.name}': {error}") from None
            if written != entry.nbytes:
                raise RuntimeError(f"'{tensor.name}': wrote {written}, announced {entry.nbytes}")
            handle.write(bytes(-handle.tell() % weights.alignment))
            if wanted != tensor.type_name:
                found.append(
                    TensorError(
                        tensor.name, tensor.type_name, wanted, written, errors.relative_rmse
                    )
                )
    return found


def _compared(
    report: ArtifactReport,
    weights: Weights,
    artifact: Path,
    text: str,
    tokens: int,
    threads: int,
    progress: ProgressCallback | None,
) -> ArtifactReport:
    """The report with what llama.cpp says of both files; without a text, whether the header reads.

    What cannot be loaded before, for want of the library or of support in it, is a note; what was
    loaded before and is not now, a gate.
    """
    read_gguf(artifact)  # our own strict reader first
    if not text:
        return report
    with _loadable(weights, artifact.parent) as source:
        try:
            before = LlamaFile(source, threads)
        except (BackendMissingError, UnsupportedModelError) as error:
            note = f"not run, neither before nor after: {error}"
            return replace(report, notes=(*report.notes, note))
        with before:
            try:
                found = _beside(before, artifact, text, tokens, threads, progress)
            except PenstockError as error:
                if str(artifact) not in str(error):  # it is the source that gives no figures
                    raise
                name = "finite" if "not finite" in str(error) else "runs"
                if isinstance(error, UnsupportedModelError):
                    name = "loads"
                detail = str(error).replace(str(artifact), report.artifact)
                return replace(report, gates=(*report.gates, Gate(name, False, detail)))
    return replace(
        report,
        metrics=found.metrics,
        latency_before=found.before,
        latency_after=found.after,
        gates=(Gate("loads", True, "loaded back and run by llama.cpp"), *report.gates),
        notes=(*report.notes, *found.notes),
    )


def _beside(
    before: LlamaFile,
    artifact: Path,
    text: str,
    tokens: int,
    threads: int,
    progress: ProgressCallback | None,
) -> Comparison:
    def tell(done: int) -> None:
        if progress is not None:
            progress(Progress("compare", done, tokens, "tokens"))

    with LlamaFile(artifact, threads) as after:
        return compare_files(before, after, text, tokens, on_tokens=tell)


@contextmanager
def _loadable(weights: Weights, folder: Path) -> Iterator[Path]:
    """The source as a file that llama.cpp loads; of a folder, an F16 file for as long."""
    if isinstance(weights, GgufWeights):
        yield weights.path
        return
    with tempfile.TemporaryDirectory(prefix=".penstock-", dir=folder) as scratch:
        path = Path(scratch) / "f16.gguf"
        with open(path, "wb") as handle:
            write_gguf(weights, handle, fixed_plan(weights, TypeChoice("F16")), None, 1)
        yield path


def _change_gate(weights: Weights, plan: GgufPlan) -> Gate:
    changed = sum(
        plan.types[tensor.name] != tensor.type_name
        for tensor in weights.tensors
        if tensor.name in plan.matrices
    )
    return change_gate(changed, len(plan.matrices))


def _choice(
    matrices: str | None, output: str | None, embedding: str | None, target_size: int | str | None
) -> TypeChoice | None:
    """None for a target size."""
    if (matrices is None) == (target_size is None):
        raise UsageError("give a type for the matrices, or a target size, and not both")
    if matrices is not None:
        return TypeChoice(matrices, output, embedding)
    if output is not None or embedding is not None:
        raise UsageError("with a target size, formats of output and embedding are chosen too")
    return None


def _check_places(source: Path, target: Path, overwrite: bool) -> None:
    if target.exists():
        if source.exists() and target.samefile(source):
            raise UsageError(f"{target}: is the source; give another name")
        if not overwrite:
            raise UsageError(f"{target}: is there already; give another name, or overwrite it")
    check_writable(target)


def _default_tokens(weights: Weights) -> int:
    return LARGE_TOKENS if weights.source_bytes > LARGE_BYTES else EVALUATION_TOKENS


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - begin, 3)
