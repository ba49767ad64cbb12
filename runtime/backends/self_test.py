"""`python -m penstock.runtime.backends.self_test onnx|litert`: does a backend compute?

For `penstock doctor`, in a process of its own: a broken library may end it. One line of JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import PenstockError
from penstock.runtime.backends.open_model import open_model
from penstock.runtime.backends.tiny_models import ADDEND, tiny_onnx, tiny_tflite

MODELS = {"onnx": ("tiny.onnx", tiny_onnx), "litert": ("tiny.tflite", tiny_tflite)}


def examine(backend: str) -> dict[str, Any]:
    """Run the backend's tiny model; {'ok': whether the sum is right}, or {'error': ...}."""
    name, make = MODELS[backend]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(make())
        try:
            with open_model(path, threads=1) as model:
                given = np.array([[1, 2, 3]], np.float32)
                made = model.run({"x": given})["y"]
        except PenstockError as error:
            return {"error": f"{type(error).__name__}: {error}"}
    wanted = given + np.array(ADDEND, np.float32)
    return {"ok": bool(np.array_equal(made, wanted)), "made": made.tolist()}


if __name__ == "__main__":
    print(json.dumps(examine(sys.argv[1])))
