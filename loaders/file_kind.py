"""Which of the formats that can be loaded a file has."""

from __future__ import annotations

import os
from pathlib import Path

GGUF, ONNX, TFLITE = "gguf", "onnx", "tflite"
TENSOR_KINDS = (ONNX, TFLITE)
"""Formats of models that take arrays and give arrays."""


def file_kind(path: str | os.PathLike[str]) -> str:
    """'gguf', 'onnx' or 'tflite', by the magic where there is one, else by the ending.

    ONNX has no magic. What cannot be read or recognised is left to the reader of its ending, or
    of GGUF, which says what is wrong.
    """
    head = b""
    try:
        with open(path, "rb") as handle:
            head = handle.read(8)
    except OSError:
        pass
    if head.startswith(b"GGUF"):
        return GGUF
    if head[4:] == b"TFL3":
        return TFLITE
    ending = Path(path).suffix.lower()
    return {".onnx": ONNX, ".tflite": TFLITE}.get(ending, GGUF)
