"""The scalar baseline of the rendering benchmark, compiled when it is wanted."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.covariance import covariances
from penstock.loaders.splats.harmonics import C0
from penstock.loaders.splats.model import SplatModel
from penstock.runtime.splats.camera import Camera

SOURCE = Path(__file__).resolve().parent / "splat_baseline.cpp"
FLAGS = ["-O3", "-std=c++20", "-shared", "-fPIC"]  # for any processor of the architecture
TUNED = ["-march=native", "-DCUT"]  # for this one, and no exponentials for nothing


class Baseline:
    """Draws static models without harmonics, as `splat_baseline.cpp` says.

    Args:
        folder: for the compiled library.
        tuned: with `TUNED`, for a second figure; the baseline is without.

    Raises:
        RuntimeError: there is no compiler.
    """

    def __init__(self, folder: Path, *, tuned: bool = False) -> None:
        compiler = shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise RuntimeError("the baseline needs g++ or clang++")
        library = folder / f"splat_baseline{'_tuned' if tuned else ''}.so"
        flags = FLAGS + TUNED if tuned else FLAGS
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
        self.command = f"{Path(compiler).name} {' '.join(flags)}"
        self._draw = ctypes.CDLL(str(library)).draw
        self._draw.restype = None

    def draw(self, model: SplatModel, camera: Camera) -> tuple[NDArray[np.float32], float]:
        """The image [h, w, 3] and milliseconds. Making its arrays of the model's is not timed."""
        arrays = [
            model.means,
            covariances(model.scales, model.rotations),
            model.opacities,
            np.maximum(0.5 + C0 * model.sh[:, 0], 0),
            camera.rotation,
            camera.translation,
            np.array([camera.fx, camera.fy, camera.cx, camera.cy]),
        ]
        held = [np.ascontiguousarray(array, np.float32) for array in arrays]
        image = np.empty((camera.height, camera.width, 3), np.float32)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in held]
        begin = perf_counter()
        self._draw(
            ctypes.c_size_t(model.count),
            *pointers,
            ctypes.c_float(camera.near),
            ctypes.c_int(camera.width),
            ctypes.c_int(camera.height),
            ctypes.c_void_p(image.ctypes.data),
        )
        return image, 1000 * (perf_counter() - begin)
