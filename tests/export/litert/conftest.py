"""Small float models, real ones, and data for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.export.dataset import Dataset, open_dataset
from penstock.loaders.tensor_graph import TensorSpec
from tests.export.litert.model_maker import SIDE, small_cnn


@pytest.fixture
def cnn_file(tmp_path: Path) -> Path:
    """`small_cnn` in a file."""
    return small_cnn().save(tmp_path / "cnn.tflite")


@pytest.fixture(scope="session")
def npz_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`npz_of(count, labels=...)`: smooth random images for `small_cnn`."""

    def make(count: int, *, seed: int = 1, **others: Any) -> Path:
        rng = np.random.default_rng(seed)
        coarse = rng.random((count, SIDE // 4, SIDE // 4, 3))
        images = coarse.repeat(4, axis=1).repeat(4, axis=2) + 0.1 * rng.random(
            (count, SIDE, SIDE, 3)
        )
        path = tmp_path_factory.mktemp("npz") / "data.npz"
        np.savez(path, x=images.astype(np.float32), **others)
        return path

    return make


@pytest.fixture(scope="session")
def images(npz_of: Callable[..., Path]) -> Callable[[int], Dataset]:
    """`images(count)`: a dataset for `small_cnn`."""

    def make(count: int, seed: int = 1) -> Dataset:
        spec = TensorSpec("x", "float32", (1, SIDE, SIDE, 3))
        return open_dataset(npz_of(count, seed=seed), [spec])

    return make


@pytest.fixture(scope="session")
def models_dir(shared_dir: Path) -> Path:
    """The folder of real models."""
    path = shared_dir / "data" / "models"
    if not path.is_dir():
        pytest.skip(f"the folder of real models {path} is not there")
    return path


@pytest.fixture(scope="session")
def litert_export() -> None:
    """For tests that quantize with the library."""
    pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    pytest.importorskip("ai_edge_quantizer.quantizer", reason="ai-edge-quantizer is not installed")
