"""Visual wake words and RFB-320 in TFLite: our recipes beside AI Edge Quantizer's own.

Calibration photos are those without labels, the report is on the 96 with them: none is in both.
`benchmarks/quantization.py` prints what the functions here return.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError
from penstock.export.comparison import compare_models, measure_latency
from penstock.export.dataset import Dataset, Preprocessing, open_dataset
from penstock.export.litert.flatbuffer_model import parse, read_model
from penstock.export.litert.flatbuffer_writer import serialize
from penstock.export.litert.quantize import open_litert, quantize_tflite
from penstock.export.litert.quiet import quiet
from penstock.export.litert.repair import repair
from penstock.export.litert.weight_layers import stored_types
from penstock.export.precision_search import PrecisionSearch
from penstock.loaders.tflite_file import read_tflite
from penstock.runtime.backends.tensor_model import TensorModel

VWW, VENDOR = Path("models/vww_96_float.tflite"), Path("models/vww_96_int8.tflite")
RFB = Path("models/version-RFB-320.tflite")
PHOTOS = Path("photos/coco")
LABELS = PHOTOS / "person_labels.csv"
SCALING = Preprocessing(value_range=(-127 / 128, 1.0))  # RFB: (pixel - 127) / 128

MIX_BYTES = 220_000
LEAST_RATIO, MOST_DROP = 3.0, 0.01
LEAST_MIX_ACCURACY = 0.85
OURS = (
    "weight-int8",
    "static-int8 minmax",
    "static-int8 percentile",
    "static-int8 entropy",
    "dynamic-int8",
    "weight-int4",
    "dynamic-int4",
)
MIX = f"mix of at most {MIX_BYTES} bytes"
# Recipes of AI Edge Quantizer, by the names that it has for them.
LIBRARY = ("dynamic_wi8_afp32", "static_wi8_ai8", "weight_only_wi8_afp32", "dynamic_wi4_afp32",
           "weight_only_wi4_afp32")  # fmt: skip
NO_CHANGE = "nothing is quantized"


@dataclass(frozen=True)
class VwwRow:
    """One file of the model.

    Attributes:
        who: 'source', 'vendor', 'penstock' or 'ai-edge-quantizer'.
        accuracy: on the labelled photos; agreement: with the float model's answers, on the same.
        p50_ms: one thread, in turns with all others.
        problem: why there are no figures; '' where there are.
    """

    who: str
    recipe: str
    nbytes: int
    ratio: float
    accuracy: float
    agreement: float
    sqnr_db: float
    p50_ms: float
    problem: str = ""


@dataclass(frozen=True)
class RepairRow:
    """One quantization of the file whose operator codes stand in the deprecated field.

    Attributes:
        quantized: layers with int8 weights; layers: of the model.
        problem: what the tool raised, or `NO_CHANGE`.
        boxes_db, scores_db: SQNR of the outputs against the float model's, over photos.
    """

    who: str
    recipe: str
    nbytes: int
    ratio: float
    quantized: int
    layers: int
    boxes_db: float
    scores_db: float
    p50_ms: float
    problem: str = ""


Write = Callable[[Path], None]


def vww_rows(data: Path, *, calibration: int = 96, runs: int = 200) -> list[VwwRow]:
    """All contenders on the labelled photos, timed in turns.

    Args:
        data: the shared data folder.
        calibration: photos without labels.
    """
    source = data / VWW
    inputs = read_tflite(source).inputs
    shown = open_dataset(data / PHOTOS, inputs, labels=data / LABELS)
    with unlabelled(data) as folder, tempfile.TemporaryDirectory(prefix="penstock-bench-") as out:
        given = open_dataset(folder, inputs)
        made = [("source", "float", source), ("vendor", "int8", data / VENDOR)]
        failed: list[VwwRow] = []
        for who, recipe, write in _vww_contenders(source, given, calibration):
            path = Path(out) / f"{len(made) + len(failed)}.tflite"
            try:
                write(path)
                open_litert(path, 1).close()
                made.append((who, recipe, path))
            except Exception as error:  # of the library: what it comes upon
                failed.append(_vww_failed(who, recipe, error))
        return _vww_measured(source, shown, made, runs) + failed


def repair_rows(
    data: Path, *, calibration: int = 32, evaluation: int = 24, runs: int = 50
) -> list[RepairRow]:
    """RFB-320 as it is, by AI Edge Quantizer alone and by us."""
    source = data / RFB
    inputs = read_tflite(source).inputs
    shown = open_dataset(data / PHOTOS / "train2017", inputs, preprocessing=SCALING)
    given = open_dataset(data / PHOTOS / "val2017", inputs, preprocessing=SCALING)

    def ours(recipe: str) -> Write:
        def write(out: Path) -> None:
            quantize_tflite(
                source, out, recipe, calibration=given, evaluation=shown, samples=calibration,
                threads=1,
            )  # fmt: skip

        return write

    content = source.read_bytes()
    contenders: list[tuple[str, str, Write]] = [
        ("ai-edge-quantizer", "dynamic_wi8_afp32", library(content, "dynamic_wi8_afp32", None)),
        ("ai-edge-quantizer", "static_wi8_ai8", library(content, "static_wi8_ai8", given)),
        *[("penstock", r, ours(r)) for r in ("dynamic-int8", "weight-int8", "static-int8 minmax")],
    ]
    rows = [_repair_row("source", "float", source, source, shown, evaluation, runs)]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        for number, (who, recipe, write) in enumerate(contenders):
            path = Path(folder) / f"{number}.tflite"
            try:
                write(path)
            except Exception as error:  # of the library: what it comes upon
                what = _in_words(error)
                nan = float("nan")
                rows.append(RepairRow(who, recipe, 0, 0.0, 0, 0, nan, nan, nan, what))
                continue
            rows.append(_repair_row(who, recipe, path, source, shown, evaluation, runs))
    return rows


def missed_bars(vww: Sequence[VwwRow], repaired: Sequence[RepairRow] = ()) -> list[str]:
    """What is not as it should be, in words; empty where all is."""
    missed = []
    (source,) = [row for row in vww if row.who == "source"]
    ours = {row.recipe: row for row in vww if row.who == "penstock"}
    for kind in ("weight-int8", "static-int8"):
        rows = [row for name, row in ours.items() if name.startswith(kind) and not row.problem]
        best = max(rows, key=lambda row: row.accuracy, default=None)
        if best is None or best.accuracy < source.accuracy - MOST_DROP or best.ratio < LEAST_RATIO:
            missed.append(f"VWW {kind}: no file within {MOST_DROP:g} and {LEAST_RATIO:g}x smaller")
    mix = ours[MIX]
    if mix.problem or mix.accuracy < LEAST_MIX_ACCURACY or mix.nbytes > MIX_BYTES:
        missed.append(f"VWW mix: accuracy {mix.accuracy:.4f}, {mix.nbytes} bytes {mix.problem}")
    for seen in repaired:
        if seen.who == "penstock" and (seen.problem or seen.quantized < seen.layers):
            missed.append(f"RFB-320 {seen.recipe}: {seen.quantized} of {seen.layers} layers")
    return missed


@contextmanager
def unlabelled(data: Path) -> Iterator[Path]:
    """A folder of links to the photos that have no label."""
    with open(data / LABELS, newline="") as handle:
        seen = {row[0] for row in csv.reader(handle)}
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        for photo in sorted((data / PHOTOS).glob("*2017/*.jpg")):
            if photo.stem not in seen:
                os.symlink(photo.resolve(), Path(folder) / photo.name)
        yield Path(folder)


def library(content: bytes, recipe: str, given: Dataset | None, count: int = 32) -> Write:
    """AI Edge Quantizer as its documentation has it, without anything of ours around it."""

    def write(out: Path) -> None:
        with quiet():
            from ai_edge_quantizer import quantizer
            from ai_edge_quantizer import recipe as recipes

            tool = quantizer.Quantizer(content, getattr(recipes, recipe)())
            ranges = None
            if tool.need_calibration:
                assert given is not None
                samples = [sample.arrays for sample in given.samples(count)]
                ranges = tool.calibrate({"serving_default": samples}, num_threads=1)
            out.write_bytes(tool.quantize(ranges).quantized_model)

    return write


def _vww_contenders(source: Path, given: Dataset, count: int) -> list[tuple[str, str, Write]]:
    def ours(recipe: str, search: PrecisionSearch | None = None) -> Write:
        def write(out: Path) -> None:
            quantize_tflite(
                source, out, recipe, calibration=given, search=search, samples=count, threads=1
            )

        return write

    graph, model = read_model(source)
    repair(model, graph)  # without a signature its calibration raises
    content = serialize(model)
    search = PrecisionSearch(target_bytes=MIX_BYTES, samples=16)
    return [
        *[("penstock", recipe, ours(recipe)) for recipe in OURS],
        ("penstock", MIX, ours("weight-int4", search)),
        *[("ai-edge-quantizer", r, library(content, r, given, count)) for r in LIBRARY],
    ]


def _vww_measured(
    source: Path, data: Dataset, made: Sequence[tuple[str, str, Path]], runs: int
) -> list[VwwRow]:
    sample = next(iter(data.samples(1)))
    rows = []
    with ExitStack() as stack:
        models: list[TensorModel] = [
            stack.enter_context(open_litert(path, 1)) for _, _, path in made
        ]
        times = measure_latency(models, sample, runs)
        for (who, recipe, path), model, latency in zip(made, models, times, strict=True):
            found = {m.name: m.after for m in compare_models(models[0], model, data)}
            size = path.stat().st_size
            rows.append(
                VwwRow(
                    who, recipe, size, source.stat().st_size / size, found["accuracy"],
                    found["agreement"], found["sqnr_db"], latency.p50_ms,
                )
            )  # fmt: skip
    return rows


def _vww_failed(who: str, recipe: str, error: Exception) -> VwwRow:
    nan = float("nan")
    return VwwRow(who, recipe, 0, 0.0, nan, nan, nan, nan, _in_words(error))


def _repair_row(
    who: str, recipe: str, path: Path, source: Path, data: Dataset, count: int, runs: int
) -> RepairRow:
    types: list[Any] = stored_types(parse(path.read_bytes(), str(path)))
    with open_litert(source, 1) as before, open_litert(path, 1) as after:
        found = {m.name: m.after for m in compare_models(before, after, data, limit=count)}
        _, latency = measure_latency([before, after], next(iter(data.samples(1))), runs)
    boxes, scores = (found[f"sqnr_db:{spec}"] for spec in ("Identity", "Identity_1"))
    size, quantized = path.stat().st_size, types.count("int8")
    return RepairRow(
        who, recipe, size, source.stat().st_size / size, quantized, len(types), boxes, scores,
        latency.p50_ms, NO_CHANGE if not quantized and who != "source" else "",
    )  # fmt: skip


def _in_words(error: Exception) -> str:
    kind = "" if isinstance(error, PenstockError) else f"{type(error).__name__}: "
    return f"{kind}{' '.join(str(error).split())[:120]}"
