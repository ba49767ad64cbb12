"""Small GGUF models: synthetic ones of several architectures, and one that was a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gguf_shapes import SHAPES, Shape
from benchmarks.synthetic_gguf import write_gguf
from tests.export.conftest import ModelMaker

Files = Callable[..., Path]
WIDTHS = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """`files("tiny-llama", dtype="F16", **changes)`: a synthetic model, made once."""
    folder, made = tmp_path_factory.mktemp("gguf"), dict[Shape, Path]()

    def get(name: str, dtype: str = "F16", **changes: object) -> Path:
        shape = replace(SHAPES[name], **changes).typed(dtype)  # type: ignore[arg-type]
        if shape not in made:
            made[shape] = write_gguf(shape, folder / f"{len(made)}.gguf")[0]
        return made[shape]

    return get


@pytest.fixture(scope="session")
def checkpoint(make_model: ModelMaker) -> Path:
    """A Hugging Face folder that llama.cpp computes as transformers does."""
    return make_model("arcee", **WIDTHS)
