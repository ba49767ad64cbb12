"""Exported captioners, each made once: torch's exporter takes seconds for the smallest graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.export.captioner.tiny_captioners import tiny_blip, tiny_vit_gpt2
from tests.export.torchlib import keep_torchlib

Images = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Made:
    """A folder, the transformers model that was saved in it, and its exports."""

    folder: Path
    model: Any
    plain: Path
    int8: Path
    report: Any  # of the int8 export
    graphs: Any  # of the plain one


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _make(tmp_path_factory.mktemp("blip"), tiny_blip)


@pytest.fixture(scope="session")
def vit_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _make(tmp_path_factory.mktemp("vit-gpt2"), tiny_vit_gpt2)


@pytest.fixture(params=["blip", "vit_gpt2"])
def made(request: pytest.FixtureRequest) -> Made:
    found: Made = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def images() -> Images:
    """Pictures of several sizes; no two alike."""
    random = np.random.default_rng(1)
    sizes = ((40, 60), (60, 40), (32, 32), (90, 33), (16, 20), (64, 64))
    return [
        random.integers(0, 256, (*size, 3), np.uint8) // (1 + i) for i, size in enumerate(sizes)
    ]


def _make(root: Path, build: Callable[[Path], Any]) -> Made:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from penstock.export.captioner import convert
    from penstock.export.captioner.graphs import export_graphs

    keep_torchlib()
    folder = root / "checkpoint"
    folder.mkdir()
    model = build(folder)
    kept: dict[str, Any] = {}

    def export_once(network: Any) -> Any:
        if "graphs" not in kept:
            kept["graphs"] = export_graphs(network)
        return kept["graphs"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "export_graphs", export_once)  # which takes most of the time
        plain, int8 = root / "plain.captioner", root / "int8.captioner"
        convert.export_captioner(folder, plain, int8=False, threads=1)
        report = convert.export_captioner(folder, int8, threads=1)
    return Made(folder, model, plain, int8, report, kept["graphs"])
