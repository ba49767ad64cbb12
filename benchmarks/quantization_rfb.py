"""RFB-320, a face detector in ONNX: our int8 beside onnxruntime's own, and memory of calibration.

`benchmarks/quantization.py` prints what the functions here return.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.calibration_child import SCALING, Reader
from penstock.errors import PenstockError
from penstock.export.comparison import compare_models, measure_latency
from penstock.export.dataset import Dataset, open_dataset
from penstock.export.onnx.export import export_onnx
from penstock.export.onnx.libraries import quantization, quiet_libraries
from penstock.export.onnx.quantize import open_onnx, quantize_onnx
from penstock.export.precision_search import PrecisionSearch
from penstock.loaders.onnx_file import read_onnx
from penstock.runtime.backends.tensor_model import TensorModel

CHILD = Path(__file__).with_name("calibration_child.py")
MODEL = Path("models/version-RFB-320.onnx")
CALIBRATION, EVALUATION = Path("photos/coco/val2017"), Path("photos/coco/train2017")
PHOTOS = Path("photos")  # all 1,166 of them
CAP_BYTES = 6 << 30
"""Of data of a child: onnxruntime's histogram calibrators keep all activations of all samples."""

LEAST_BOXES_DB = 38.0
MOST_GROWTH = 1.10
RECIPES = (
    "static-int8 minmax",
    "static-int8 percentile",
    "static-int8 entropy",
    "static-int8 minmax reduce-range",
    "static-int8 minmax per-channel",
    "static-int8 minmax per-channel reduce-range",
    "dynamic-int8",
    "weight-int8",
)
MIX = "static-int8 per-channel reduce-range"
MIX_BYTES = 400_000


@dataclass(frozen=True)
class ModelRow:
    """One file of the model.

    Attributes:
        who: 'source', 'penstock' or 'onnxruntime'.
        boxes_db, scores_db: SQNR of the outputs against the float model, over the photos.
        p50_ms: one thread, in turns with all others.
        problem: why there are no figures; '' where there are.
    """

    who: str
    recipe: str
    nbytes: int
    ratio: float
    boxes_db: float
    scores_db: float
    p50_ms: float
    problem: str = ""


@dataclass(frozen=True)
class MemoryRow:
    """One calibration in a process of its own.

    Attributes:
        grown_bytes: the most that it held, less what it held before.
        peak_bytes: the most that it held, libraries and all; 0 where the cap was met.
    """

    who: str
    method: str
    samples: int
    peak_bytes: int
    grown_bytes: int
    seconds: float


def model_rows(
    data: Path, *, calibration: int = 50, evaluation: int = 80, runs: int = 100
) -> list[ModelRow]:
    """All contenders on the same photos, timed in turns.

    Args:
        data: the shared data folder.
        calibration, evaluation: photos, of different folders.
    """
    source = data / MODEL
    inputs = read_onnx(source).inputs
    given = open_dataset(data / CALIBRATION, inputs, preprocessing=SCALING)
    shown = open_dataset(data / EVALUATION, inputs, preprocessing=SCALING)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        made = [("source", "float", source)]
        problems: list[ModelRow] = []
        for who, recipe, write in _contenders(source, given, calibration):
            out = Path(folder) / f"{len(made) + len(problems)}.onnx"
            try:
                write(out)
                with open_onnx(out, 1):
                    made.append((who, recipe, out))
            except PenstockError as error:
                what = str(error).replace(str(out), "the file")
                size = out.stat().st_size if out.exists() else 0
                problems.append(_failed(who, recipe, size, source, what))
        return _measured(source, shown, made, evaluation, runs) + problems


def memory_rows(
    data: Path,
    counts: Sequence[int] = (10, 1000),
    methods: Sequence[str] = ("minmax", "percentile", "entropy"),
) -> list[MemoryRow]:
    """Calibrations of so many photos, each in a process of its own."""
    rows = []
    for who in ("penstock", "onnxruntime"):
        for method in methods:
            for count in counts:
                done = subprocess.run(
                    [
                        sys.executable, str(CHILD), who, method, str(count), str(data / MODEL),
                        str(data / PHOTOS), str(CAP_BYTES),
                    ],
                    capture_output=True,
                    text=True,
                    check=False,
                )  # fmt: skip
                said = done.stdout.strip().splitlines()
                if said and said[-1] != "out of memory" and done.returncode == 0:
                    before, peak, seconds = said[-1].split()
                    grown = int(peak) - int(before)
                    rows.append(MemoryRow(who, method, count, int(peak), grown, float(seconds)))
                elif said and said[-1] == "out of memory":
                    rows.append(MemoryRow(who, method, count, 0, 0, 0.0))
                else:
                    raise RuntimeError(f"{who} {method} {count}: {done.stderr[-2000:]}")
    return rows


def missed_bars(models: Sequence[ModelRow], memory: Sequence[MemoryRow]) -> list[str]:
    """What is not as it should be, in words; empty where all is."""
    missed = []
    ours = {row.recipe: row for row in models if row.who == "penstock"}
    static = [row for name, row in ours.items() if name.startswith("static-int8")]
    best = max((row.boxes_db for row in static if not row.problem), default=0.0)
    if best < LEAST_BOXES_DB:
        missed.append(f"RFB-320 static int8: {best:.1f} dB, wanted {LEAST_BOXES_DB:g}")
    if not any("per-channel" in row.recipe and not row.problem for row in static):
        missed.append("RFB-320 per-channel static int8 does not load")
    for method in {row.method for row in memory}:
        rows = [r for r in memory if r.who == "penstock" and r.method == method]
        least = min(rows, key=lambda row: row.samples)
        most = max(rows, key=lambda row: row.samples)
        if most.peak_bytes > MOST_GROWTH * least.peak_bytes or not most.peak_bytes:
            missed.append(
                f"calibration {method}: {least.peak_bytes / 1e6:.0f} MB at {least.samples} "
                f"samples, {most.peak_bytes / 1e6:.0f} MB at {most.samples}"
            )
    return missed


Write = Callable[[Path], None]


def _contenders(source: Path, data: Dataset, count: int) -> list[tuple[str, str, Write]]:
    def ours(recipe: str) -> Write:
        def write(out: Path) -> None:
            quantize_onnx(source, out, recipe, calibration=data, samples=count, threads=1)

        return write

    def mix(out: Path) -> None:
        search = PrecisionSearch(target_bytes=MIX_BYTES, samples=8)
        quantize_onnx(source, out, MIX, calibration=data, samples=count, search=search, threads=1)

    def cleaned(out: Path) -> None:
        export_onnx(source, out, threads=1)

    contenders: list[tuple[str, str, Write]] = [("penstock", "float, cleaned", cleaned)]
    contenders += [("penstock", recipe, ours(recipe)) for recipe in RECIPES]
    contenders.append(("penstock", f"mix of at most {MIX_BYTES} bytes", mix))
    for method in ("MinMax", "Percentile", "Entropy"):
        for per_channel in (False, True):
            name = f"quantize_static {method}" + (" per-channel" if per_channel else "")
            write = _static(source, data, min(count, 50), method, per_channel)
            contenders.append(("onnxruntime", name, write))
    contenders.append(("onnxruntime", "quantize_dynamic", _dynamic(source)))
    return contenders


def _static(source: Path, data: Dataset, count: int, method: str, per_channel: bool) -> Write:
    """onnxruntime as its documentation has it: pre-process, then quantize."""

    def write(out: Path) -> None:
        tools = quantization()
        with tempfile.TemporaryDirectory() as folder, quiet_libraries():
            ready = str(Path(folder) / "ready.onnx")
            quantization("shape_inference").quant_pre_process(str(source), ready)
            tools.quantize_static(
                ready,
                str(out),
                Reader(data, count),
                calibrate_method=getattr(tools.CalibrationMethod, method),
                per_channel=per_channel,
            )

    return write


def _dynamic(source: Path) -> Write:
    def write(out: Path) -> None:
        with tempfile.TemporaryDirectory() as folder, quiet_libraries():
            ready = str(Path(folder) / "ready.onnx")
            quantization("shape_inference").quant_pre_process(str(source), ready)
            quantization().quantize_dynamic(ready, str(out))

    return write


def _measured(
    source: Path, data: Dataset, made: Sequence[tuple[str, str, Path]], count: int, runs: int
) -> list[ModelRow]:
    sample = next(iter(data.samples(1)))
    rows = []
    with ExitStack() as stack:
        models: list[TensorModel] = [stack.enter_context(open_onnx(path, 1)) for _, _, path in made]
        times = measure_latency(models, sample, runs)
        for (who, recipe, path), model, latency in zip(made, models, times, strict=True):
            found = {
                metric.name: metric.after
                for metric in compare_models(models[0], model, data, limit=count)
            }
            size = path.stat().st_size
            rows.append(
                ModelRow(
                    who, recipe, size, source.stat().st_size / size, found["sqnr_db:boxes"],
                    found["sqnr_db:scores"], latency.p50_ms,
                )
            )  # fmt: skip
    return rows


def _failed(who: str, recipe: str, size: int, source: Path, problem: str) -> ModelRow:
    ratio = source.stat().st_size / size if size else 0.0
    nan = float("nan")
    return ModelRow(who, recipe, size, ratio, nan, nan, nan, problem)
