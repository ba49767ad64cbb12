"""Calibrates RFB-320 on so many photos and says how much memory that took; see quantization_rfb.py.

Run as: calibration_child.py penstock|onnxruntime METHOD SAMPLES MODEL PHOTOS CAP_BYTES
Prints: memory before, the most memory, seconds; or 'out of memory' where the cap was met.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from penstock.export.dataset import Dataset, Preprocessing, open_dataset
from penstock.export.onnx.calibration import calibrate
from penstock.export.onnx.libraries import onnx_library, quantization, quiet_libraries
from penstock.export.onnx.preparation import PreparedModel, prepare_model
from penstock.export.onnx.recipe import parse_recipe
from penstock.loaders.onnx_file import read_onnx

SCALING = Preprocessing(value_range=(0, 255), mean=(127,), std=(128,))


class Reader:
    """Samples as onnxruntime's calibrators ask for them."""

    def __init__(self, dataset: Dataset, limit: int) -> None:
        self.samples = dataset.samples(limit)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        sample = next(self.samples, None)
        return None if sample is None else sample.arrays


def main(who: str, method: str, samples: int, model: Path, photos: Path, cap: int) -> None:
    """Calibrate once."""
    data = open_dataset(photos, read_onnx(model).inputs, preprocessing=SCALING)
    prepared = prepare_model(model)
    before, start = resident("VmRSS"), time.perf_counter()
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    try:
        if who == "penstock":
            calibrate(prepared, data, parse_recipe(f"static-int8 {method}"), limit=samples)
        else:
            _their_own(prepared, data, method, samples)
    except Exception as error:  # also onnxruntime's, when it cannot allocate
        if not isinstance(error, MemoryError) and "alloc" not in str(error).lower():
            raise
        print("out of memory")
        return
    print(before, resident("VmHWM"), time.perf_counter() - start)


def _their_own(prepared: PreparedModel, data: Dataset, method: str, samples: int) -> None:
    tools = quantization("calibrate")
    methods = tools.CalibrationMethod
    chosen = {
        "minmax": methods.MinMax,
        "percentile": methods.Percentile,
        "entropy": methods.Entropy,
    }[method]
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        path = Path(folder) / "prepared.onnx"
        onnx_library().save(prepared.model, str(path))
        calibrator = tools.create_calibrator(
            path,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=chosen,
        )
        calibrator.collect_data(Reader(data, samples))
        calibrator.compute_data()


def resident(field: str) -> int:
    """Bytes, from /proc: what the process holds now (VmRSS) or held at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main(
        sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]),
        int(sys.argv[6]),
    )  # fmt: skip
