"""Tiny models, real ones, and the libraries. What is not there makes its tests skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.runtime.backends.tiny_models import tiny_onnx, tiny_tflite


@pytest.fixture(scope="session")
def models_dir(shared_dir: Path) -> Path:
    """The folder of real models."""
    path = shared_dir / "data" / "models"
    if not path.is_dir():
        pytest.skip(f"the folder of real models {path} is not there")
    return path


@pytest.fixture(scope="session")
def onnxruntime() -> None:
    """For tests that run ONNX models."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(scope="session")
def litert() -> None:
    """For tests that run TFLite models."""
    pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """y = x + (10, 20, 30), x of N x 3."""
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_onnx())
    return path


@pytest.fixture
def tflite_file(tmp_path: Path) -> Path:
    """y = x + (10, 20, 30), x of 1 x 3."""
    path = tmp_path / "tiny.tflite"
    path.write_bytes(tiny_tflite())
    return path
