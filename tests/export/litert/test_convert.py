"""Torch models become TFLite files that compute the same. One conversion for all tests."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import BackendMissingError, PenstockError, UnsupportedModelError, UsageError
from penstock.export.artifact_report import ArtifactReport
from penstock.export.dataset import synthetic
from penstock.export.gates import Floors, GateError
from penstock.export.litert import convert
from penstock.export.litert.convert import export_litert
from penstock.export.litert.from_file import export_litert_file
from penstock.export.quantize import DataPaths
from penstock.loaders.tflite_file import read_tflite
from penstock.runtime.backends.open_model import open_model
from tests.export.litert.model_maker import small_cnn

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.slow  # importing litert-torch takes ten seconds


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two inputs, a dict of outputs, and a dropout that must be off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 32, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(32)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(32, 64)

    def forward(self, image: Any, offset: Any) -> Any:
        features = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        return {"logits": self.head(self.drop(features)) + offset, "features": features}


@dataclass(frozen=True)
class Converted:
    """A module in training mode, its inputs, and what came of it."""

    module: Any
    inputs: tuple[Any, ...]
    file: Path
    report: ArtifactReport
    state: dict[str, Any]


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """`Net`, converted once."""
    pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    if not _installed("litert_torch"):
        pytest.skip("litert-torch is not installed")
    torch.manual_seed(0)
    module = Net().train()
    with torch.no_grad():
        module.norm.running_mean.normal_()
        module.norm.running_var.uniform_(0.5, 2.0)
    inputs = (torch.rand(1, 3, 8, 8), torch.rand(1, 64))
    file = tmp_path_factory.mktemp("convert") / "net.tflite"
    module.drop.eval()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    report = export_litert(module, inputs, file)
    return Converted(module, inputs, file, report, state)


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_the_module_stays_as_it_was(converted: Converted) -> None:
    assert converted.module.training and converted.module.norm.training
    assert not converted.module.drop.training
    for name, tensor in converted.module.state_dict().items():
        assert torch.equal(tensor, converted.state[name]), name


def test_the_file_equals_torch(converted: Converted) -> None:
    module = copy.deepcopy(converted.module).eval()
    with open_model(converted.file, threads=1) as model, torch.no_grad():
        assert [spec.name for spec in model.inputs] == ["image", "offset"]
        for seed in range(3):
            torch.manual_seed(seed)
            image, offset = torch.randn(1, 3, 8, 8), torch.randn(1, 64)
            wanted = module(image, offset)
            made = model.run({"image": image.numpy(), "offset": offset.numpy()})
            assert list(made) == ["logits", "features"]
            for name, array in made.items():
                np.testing.assert_allclose(array, wanted[name].numpy(), atol=1e-5)


def test_the_report(converted: Converted) -> None:
    report = converted.report
    assert report.source == "Net" and report.target == "litert" and report.recipe == "float"
    assert report.metric("error_to_torch").after < convert.TOLERANCE
    assert report.artifact_bytes == converted.file.stat().st_size
    assert report.latency_after is not None and report.latency_after.threads == 1
    assert [gate.name for gate in report.gates] == ["loads", "equals torch"] and report.passed


class FromFile:
    """Stands for litert-torch with a conversion made before: one takes seconds."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def convert(self, module: Any, inputs: Any) -> Any:
        return self

    def model_content(self) -> bytes:
        return self.content


@pytest.fixture
def again(converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions of `Net` give the file that is there; all that follows is real."""
    monkeypatch.setitem(sys.modules, "litert_torch", FromFile(converted.file.read_bytes()))


def test_quantized_in_the_same_go(converted: Converted, again: None, tmp_path: Path) -> None:
    out = tmp_path / "small.tflite"
    data = synthetic(read_tflite(converted.file).inputs, 8)
    report = export_litert(
        converted.module, converted.inputs, out, recipe="weight-int8", calibration=data, threads=1
    )
    assert report.source == "Net" and report.recipe == "weight-int8"
    assert {gate.name for gate in report.gates} >= {"equals torch", "changed", "smaller", "loads"}
    assert out.stat().st_size < converted.file.stat().st_size / 1.5
    assert "conversion" in report.seconds and "quantization" in report.seconds


def test_names_of_the_callers_choice(converted: Converted, again: None, tmp_path: Path) -> None:
    out = tmp_path / "named.tflite"
    export_litert(
        converted.module, converted.inputs, out, input_names=["a", "b"], output_names=["y", "z"]
    )
    graph = read_tflite(out)
    assert [s.name for s in graph.inputs] == ["a", "b"]
    assert [s.name for s in graph.outputs] == ["y", "z"]
    for names in (["a"], ["a", "a"]):
        with pytest.raises(UsageError, match="input names"):
            export_litert(
                converted.module, converted.inputs, out, input_names=names, overwrite=True
            )


def test_a_file_that_differs_from_torch_is_refused(
    converted: Converted, again: None, tmp_path: Path
) -> None:
    other = Net()  # other weights than those of the file
    out = tmp_path / "other.tflite"
    with pytest.raises(GateError, match="equals torch: largest difference"):
        export_litert(other, converted.inputs, out)
    with pytest.raises(GateError, match="min-ratio") as caught:
        export_litert(
            converted.module,
            converted.inputs,
            out,
            recipe="weight-int8",
            floors=Floors(min_ratio=9.0),
            threads=1,
        )
    assert caught.value.report.source == "Net"
    assert list(tmp_path.iterdir()) == []


def test_operators_that_cannot_be_lowered_are_named(
    converted: Converted, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Svd(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return torch.linalg.svd(x)[1]

    with pytest.raises(UnsupportedModelError, match="cannot lower aten._linalg_svd.default"):
        export_litert(Svd(), (torch.rand(4, 4),), tmp_path / "svd.tflite")
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == "" and list(tmp_path.iterdir()) == []


def test_what_the_library_trips_over_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As litert-torch 0.10 says it of complex numbers; the file it came in is named too."""

    class Trips:
        def convert(self, module: Any, inputs: Any) -> Any:
            raise RuntimeError(
                "Unsupported ir element type:\n complex<f32>\n\nWhile executing %view_as_real : "
                "[num_users=1] = call_function[target=torch.ops.aten.view_as_real.default](args = "
                "(%_fft_r2c,), kwargs = {})\nOriginal traceback: ..."
            )

    class Spectrum(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return torch.fft.fft(x).real

    monkeypatch.setitem(sys.modules, "litert_torch", Trips())
    source = tmp_path / "fft.pt2"
    torch.export.save(torch.export.export(Spectrum(), (torch.rand(1, 8),)), source)
    with pytest.raises(PenstockError) as caught:
        export_litert_file(source, tmp_path / "fft.tflite")
    assert str(caught.value) == (
        f"{source}: litert-torch failed at aten.view_as_real.default: RuntimeError: Unsupported ir "
        "element type: complex<f32>"
    )


def test_what_cannot_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, x = tmp_path / "x.tflite", (torch.rand(1, 4),)
    with pytest.raises(UsageError, match=r"expected a torch\.nn\.Module"):
        export_litert(lambda x: x, x, out)
    with pytest.raises(UsageError, match="no example inputs"):
        export_litert(torch.nn.Identity(), (), out)
    with pytest.raises(UsageError, match="example input 0 is a list"):
        export_litert(torch.nn.Identity(), ([1.0],), out)
    with pytest.raises(UsageError, match="recipe 'int3'"):
        export_litert(torch.nn.Identity(), x, out, recipe="int3")
    with pytest.raises(UsageError, match=r"ends in \.tflite"):
        export_litert(torch.nn.Identity(), x, tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(BackendMissingError, match=r"penstock\[litert-export\]"):
        export_litert(torch.nn.Identity(), x, out)


def test_exported_programs(converted: Converted, again: None, tmp_path: Path) -> None:
    source, out = tmp_path / "net.pt2", tmp_path / "net.tflite"
    module = copy.deepcopy(converted.module).eval()
    torch.export.save(torch.export.export(module, converted.inputs), source)
    report = export_litert_file(source, out)
    assert report.source == str(source) and report.passed
    assert [spec.name for spec in read_tflite(out).inputs] == ["image", "offset"]
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        image=rng.random((5, 3, 8, 8)).astype(np.float32),
        offset=rng.random((5, 64)).astype(np.float32),
    )
    report = export_litert_file(
        source,
        out,
        recipe="static-int8",
        data=DataPaths(calibration=tmp_path / "data.npz"),
        overwrite=True,
        threads=1,
    )
    assert report.recipe == "static-int8 minmax" and report.ratio > 1.2


def test_tflite_files_are_repaired(tmp_path: Path) -> None:
    maker = small_cnn()
    for code in maker.model.operatorCodes:
        code.builtinCode = 0
    source, out = maker.save(tmp_path / "old.tflite"), tmp_path / "new.tflite"
    report = export_litert_file(source, out)
    assert report.recipe == "repair" and len(report.notes) == 2
    assert report.metric("sqnr_db").after == 200
    assert any(g.name == "computes the same" and g.passed for g in report.gates)
    with pytest.raises(UsageError, match="nothing to repair"):
        export_litert_file(out, tmp_path / "newer.tflite")
    small = export_litert_file(out, tmp_path / "small.tflite", recipe="weight-int8", threads=1)
    assert small.ratio > 2


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match=r"\*\.pt2"):
        export_litert_file(path, tmp_path / "out.tflite")
    with pytest.raises(PenstockError, match=r"absent\.pt2"):
        export_litert_file(tmp_path / "absent.pt2", tmp_path / "out.tflite")


def test_sizes_that_the_program_leaves_open_are_said_to_be_fixed() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    sample = torch.zeros(2, 8)
    open_ended = torch.export.export(torch.nn.Linear(8, 4), (sample,), dynamic_shapes=({0: batch},))
    fixed = torch.export.export(torch.nn.Linear(8, 4), (sample,))
    (note,) = convert._fixed_shapes(open_ended, (sample.numpy(),))
    assert "[2, 8]" in note
    assert convert._fixed_shapes(fixed, (sample.numpy(),)) == ()
    assert convert._fixed_shapes(torch.nn.Linear(8, 4), (sample.numpy(),)) == ()
