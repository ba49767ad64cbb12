"""`penstock export llm`: a checkpoint becomes a bundle.

    1. convert    the source, tensor by tensor, into a plain bundle
    2. calibrate  run it densely on calibration text; keep FFN inputs and hidden activations
    3. study      per layer: neuron order, predictor, statistics
    4. write      the bundle again, reordered, with predictors and statistics
    5. evaluate   perplexity before and after, on text that nothing was fitted to

Without calibration the plain bundle of step 1 is the result.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import StorageError, UsageError
from penstock.export.bundle_writer import BundlePlan, bundle_stride, write_bundle
from penstock.export.report import ExportReport, Progress, ProgressCallback
from penstock.export.sources import Source, open_source
from penstock.loaders.bundle import open_bundle
from penstock.quant.blocks import BlockFormat, block_format


def export_llm(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str = "F16",
    block: int = 512,
    activation: str | None = None,
    calibrate: bool = True,
    calibration: str | os.PathLike[str] | None = None,
    calibration_tokens: int | None = None,
    evaluate: bool = True,
    evaluation: str | os.PathLike[str] | None = None,
    evaluation_tokens: int | None = None,
    recall_target: float = 0.99,
    tokenizer: bool = True,
    threads: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> ExportReport:
    """Export a language model to a bundle file.

    Args:
        source: a Hugging Face folder, or a GGUF of a supported architecture.
        out: the file to write.
        dtype: F16, Q8_0 or Q4_0, of bundles and resident matrices.
        block: bundles are padded to a multiple of it: 512, or 4096 for 4Kn drives.
        activation: for a llama GGUF, which does not say: relu, relu2, drelu or fatrelu:THRESHOLD.
        calibrate: train predictors, choose the neuron order and measure statistics. False makes a
            plain bundle, which runs only in `exact` mode or dense.
        calibration: a text file; None takes the sample of fairy tales in the package.
        calibration_tokens: at most so many of it; None chooses by the model's size.
        evaluate: measure perplexity before and after.
        evaluation: a text file that calibration does not use; None takes the package's.
        evaluation_tokens: at most so many of it.
        recall_target: share of the active magnitude that predicted neurons must carry.
        tokenizer: False exports a source that has no tokenizer; it then cannot calibrate.
        threads: for calibration; None takes every core.
        overwrite: whether `out` may exist.
        progress: called often; an exception from it stops the export and leaves no file.

    Raises:
        UsageError: an argument is out of its range, or `out` exists.
        FormatError: the source is damaged or incomplete.
        UnsupportedModelError: an architecture or activation that cannot be streamed by neuron.
        BackendMissingError: the extra `penstock[export]` is needed and not installed.
        StorageError: reading or writing failed.
    """
    target = Path(out)
    form = block_format(dtype)
    _check(target, recall_target, overwrite)
    model = open_source(source, activation)
    stride = bundle_stride(model.spec, form, block)
    clock = _Clock(progress)
    _convert(model, target, BundlePlan(form, block), tokenizer, clock)
    return _report(model, target, form, block, stride, recall_target, clock)


class _Clock:
    """Times the stages and tells the caller where the export is."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self.callback = callback
        self.seconds: dict[str, float] = {}
        self._stage, self._unit, self._done, self._total = "", "", 0, 0

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[None]:
        self._stage, self._unit, self._done, self._total = name, unit, 0, total
        begin = time.monotonic()
        self.tick(0)
        yield
        self.seconds[name] = round(time.monotonic() - begin, 3)

    def tick(self, count: int) -> None:
        self._done += count
        if self.callback is not None:
            self.callback(Progress(self._stage, self._done, self._total, self._unit))


def _convert(source: Source, out: Path, plan: BundlePlan, tokenizer: bool, clock: _Clock) -> None:
    with clock.stage("convert", _bundle_bytes(source, plan), "bytes"):
        write_bundle(source, out, plan, tokenizer, clock.tick)


def _bundle_bytes(source: Source, plan: BundlePlan) -> int:
    """About what will be written."""
    spec = source.spec
    bundles = spec.layers * spec.neurons * bundle_stride(spec, plan.form, plan.block)
    matrices = [s for n, s in source.shapes.items() if len(s) == 2 and ".ffn_" not in n]
    return bundles + sum(rows * plan.form.row_bytes(columns) for rows, columns in matrices)


def _check(target: Path, recall_target: float, overwrite: bool) -> None:
    if not 0.5 <= recall_target <= 1.0:
        raise UsageError(f"recall target is {recall_target}; expected 0.5 to 1.0")
    if target.is_dir() or (target.exists() and not overwrite):
        raise UsageError(f"{target}: exists; choose another name or allow overwriting (--force)")
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent}: there is no such folder; make it first")


def _report(
    source: Source,
    out: Path,
    form: BlockFormat,
    block: int,
    stride: int,
    recall_target: float,
    clock: _Clock,
) -> ExportReport:
    bundle = open_bundle(out)
    return ExportReport(
        source=str(source.path),
        out=str(out),
        name=source.spec.name,
        arch=source.spec.arch,
        activation=source.spec.activation,
        dtype=form.name,
        block=block,
        stride=stride,
        source_bytes=source.weight_bytes,
        source_format=source.weight_format,
        bundle_bytes=bundle.file.size,
        ffn_bytes=bundle.ffn_bytes,
        predictor_bytes=sum(p.nbytes for p in bundle.predictors if p is not None),
        recall_target=recall_target,
        calibration_tokens=0,
        layers=(),
        perplexity=(),
        seconds=clock.seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
