"""ONNX files from torch, exported programs, folders and older ONNX files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import FormatError, PenstockError, UnsupportedModelError, UsageError
from penstock.export.gates import Floors, GateError
from penstock.export.onnx.export import export_onnx
from penstock.export.quantize import DataPaths
from penstock.runtime.backends.open_model import open_model, read_graph
from tests.export.torchlib import keep_torchlib


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    keep_torchlib()
    return torch


@pytest.fixture(scope="module")
def module(torch: Any, onnx: Any) -> Any:
    """image 1x3x8x8 -> conv, batch norm, relu, linear: 1x4."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3),
        torch.nn.BatchNorm2d(32),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 36, 4),
    )
    net(torch.randn(16, 3, 8, 8))  # for the running mean and variance
    return net.train()


@pytest.fixture(scope="module")
def exported(module: Any, torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export, for several tests; the module stays in training mode."""
    out = tmp_path_factory.mktemp("export") / "net.onnx"
    report = export_onnx(
        module, out, example_inputs=(torch.randn(1, 3, 8, 8),), output_names=["logits"], threads=1
    )
    assert report.passed and report.metric("sqnr_db").after > 100
    assert module.training
    return out


@pytest.mark.slow  # torch, and its exporter
def test_a_module_computes_the_same(module: Any, torch: Any, exported: Path) -> None:
    image = np.random.default_rng(3).normal(size=(1, 3, 8, 8)).astype(np.float32)
    net = module.eval()
    with torch.no_grad():
        wanted = net(torch.from_numpy(image)).numpy()
    module.train()
    with open_model(exported, threads=1) as model:
        assert [spec.name for spec in (*model.inputs, *model.outputs)] == ["input", "logits"]
        np.testing.assert_allclose(model.run({"input": image})["logits"], wanted, atol=1e-5)
    assert "BatchNormalization" not in read_graph(exported).operators


class Made:
    """Stands for what torch's exporter gives, with a file made before: one takes seconds."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def save(self, out: str, external_data: bool) -> None:
        Path(out).write_bytes(self.content)


def test_a_program_and_a_recipe_in_one_command(
    module: Any, torch: Any, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = torch.export.export(module.eval(), (torch.randn(1, 3, 8, 8),))
    module.train()
    source, out, data = tmp_path / "net.pt2", tmp_path / "net8.onnx", tmp_path / "data.npz"
    torch.export.save(program, source)
    rng = np.random.default_rng(0)
    np.savez(data, input=rng.normal(size=(6, 3, 8, 8)).astype(np.float32))
    report = export_onnx(
        source, out, recipe="static-int8 reduce-range", data=DataPaths(calibration=data), threads=1
    )
    assert report.source == str(source) and out.stat().st_size == report.artifact_bytes
    assert set(report.precisions.values()) == {"int8"} and report.ratio > 2
    gates = {gate.name for gate in report.gates}
    assert {"computes the same", "changed", "smaller"} <= gates
    assert report.metric("sqnr_db").after > 25
    floors = Floors({"sqnr_db": 190})
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Made(exported.read_bytes()))
    with pytest.raises(GateError, match="sqnr_db: ") as refused:  # named after what was given
        export_onnx(source, tmp_path / "no.onnx", recipe="weight-int8", floors=floors, threads=1)
    assert refused.value.report.source == str(source)
    assert "computes the same" in {gate.name for gate in refused.value.report.gates}


def test_a_pt2_that_would_run_code(torch: Any, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt2"
    path.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(FormatError, match="evil.pt2"):
        export_onnx(path, tmp_path / "out.onnx")


def test_an_old_onnx_file_is_cleaned(conv_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.onnx"
    report = export_onnx(conv_model, out, threads=1)
    assert report.recipe == "float" and report.passed
    assert any("opset raised from 9 to 20" in note for note in report.notes)
    assert read_graph(out).opsets[""] == 20
    assert report.metric("sqnr_db").after > 100
    with pytest.raises(GateError, match="changed: there is nothing to clean"):
        export_onnx(out, tmp_path / "again.onnx", threads=1)
    assert list(tmp_path.iterdir()) == [out]


def test_floors_of_a_float_file(conv_model: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="min-ratio"):
        export_onnx(conv_model, tmp_path / "clean.onnx", floors=Floors(min_ratio=3.0), threads=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # transformers
def test_an_image_classifier_of_a_folder(torch: Any, onnx: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8, num_labels=3,
    )  # fmt: skip
    folder = tmp_path / "vit"
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    report = export_onnx(folder, tmp_path / "vit.onnx", output_names=["logits"], threads=1)
    assert report.passed and report.metric("agreement").after == 1
    with open_model(tmp_path / "vit.onnx", threads=1) as model:
        assert model.inputs[0].name == "pixel_values"
        assert model.run({"pixel_values": np.zeros((1, 3, 16, 16), np.float32)})[
            "logits"
        ].shape == (1, 3)


def test_folders_that_are_none(torch: Any, onnx: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(FormatError, match="no config.json"):
        export_onnx(folder, tmp_path / "out.onnx")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UnsupportedModelError, match="'gpt2' is no image classifier"):
        export_onnx(folder, tmp_path / "out.onnx")


def test_what_cannot_be_exported(torch: Any, onnx: Any, tmp_path: Path) -> None:
    class Odd(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x if float(x.sum()) > 0 else -x

    out = tmp_path / "out.onnx"
    with pytest.raises(PenstockError, match="Odd: torch could not export it"):
        export_onnx(Odd(), out, example_inputs=(torch.ones(2),))
    with pytest.raises(UsageError, match="no example inputs"):
        export_onnx(Odd(), out)
    with pytest.raises(UsageError, match="expected a torch.nn.Module"):
        export_onnx(3, out, example_inputs=(torch.ones(2),))
    with pytest.raises(UsageError, match="example input 0 is a str"):
        export_onnx(Odd(), out, example_inputs=("x",))
    with pytest.raises(UsageError, match="expected an ONNX file"):
        export_onnx(tmp_path / "model.h5", out)
    assert not out.exists()
