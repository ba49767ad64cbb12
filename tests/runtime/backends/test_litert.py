"""TFLite models in LiteRT: results, quantized inputs, what is refused, which library."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import penstock
from penstock.errors import BackendMissingError, PenstockError, UnsupportedModelError, UsageError
from penstock.loaders.tensor_graph import Quantization, TensorSpec
from penstock.runtime.backends import litert_model
from penstock.runtime.backends.litert_model import LitertModel, interpreter_class
from penstock.runtime.backends.open_model import open_model
from penstock.runtime.backends.tensor_model import TensorModel
from penstock.runtime.backends.tiny_models import (
    ADDEND,
    FlatTable,
    tflite_model,
    tflite_tensor,
)

ADD, CUSTOM, INT8 = 0, 32, 9


@pytest.mark.usefixtures("litert")
def test_a_sum(tflite_file: Path) -> None:
    model = penstock.load(tflite_file, threads=1)
    assert isinstance(model, LitertModel)
    assert (model.backend, model.threads, model.path) == ("litert", 1, tflite_file)
    assert model.inputs == (TensorSpec("x", "float32", (1, 3)),)
    assert model.outputs == (TensorSpec("y", "float32", (1, 3)),)
    for start in range(3):
        given = np.arange(start, start + 3, dtype=np.float32).reshape(1, 3)
        made = model.run({"x": given})
        assert list(made) == ["y"]
        np.testing.assert_array_equal(made["y"], given + np.array(ADDEND, np.float32))


@pytest.mark.usefixtures("litert")
def test_outputs_are_the_callers_own(tflite_file: Path) -> None:
    with open_model(tflite_file) as model:
        first = model.run({"x": np.zeros((1, 3), np.float32)})["y"]
        kept = first.copy()
        model.run({"x": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.usefixtures("litert")
def test_it_is_a_tensor_model(tflite_file: Path) -> None:
    model: TensorModel = open_model(tflite_file)
    with model as same:
        assert same is model
    with pytest.raises(UsageError, match="the model is closed"):
        model.run({"x": np.zeros((1, 3), np.float32)})
    model.close()


@pytest.mark.usefixtures("litert")
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "input 'x' is missing; the model's inputs are 'x'"),
        ({"y": np.zeros((1, 3), np.float32)}, "there is no input 'y'"),
        ({"x": np.zeros((2, 3), np.float32)}, "has shape 2 x 3, expected 1 x 3"),
        ({"x": np.zeros((1, 3), np.int8)}, "is int8, expected float32"),
    ],
)
def test_inputs_that_do_not_fit(
    tflite_file: Path, inputs: dict[str, np.ndarray], said: str
) -> None:
    with open_model(tflite_file) as model, pytest.raises(UsageError, match=said):
        model.run(inputs)


@pytest.mark.usefixtures("litert")
def test_what_is_not_finite_is_refused_where_asked(tflite_file: Path) -> None:
    given = np.array([[1, np.nan, 2]], np.float32)
    with open_model(tflite_file) as model:
        assert np.isnan(model.run({"x": given})["y"][0, 1])
        with pytest.raises(UsageError, match="input 'x' has values that are not finite"):
            model.run({"x": given}, finite=True)


@pytest.mark.usefixtures("litert")
def test_one_thread_at_a_time(tflite_file: Path) -> None:
    model = open_model(tflite_file)
    assert isinstance(model, LitertModel)
    with model._busy:
        said: list[str] = []

        def run() -> None:
            try:
                model.run({"x": np.zeros((1, 3), np.float32)})
            except UsageError as error:
                said.append(str(error))

        other = threading.Thread(target=run)
        other.start()
        other.join()
    assert "another thread uses this model" in said[0]
    model.run({"x": np.zeros((1, 3), np.float32)})


def quantized(path: Path) -> Path:
    """y = a + b, int8: a in steps of 0.5 around 3, b in steps of 0.25, y in steps of 1."""
    tensors = [
        tflite_tensor("a", dtype=INT8, quantization=(0.5, 3)),
        tflite_tensor("b", dtype=INT8, quantization=(0.25, 0)),
        tflite_tensor("y", dtype=INT8, quantization=(1.0, -10)),
    ]
    node = FlatTable({0: 0, 1: [0, 1], 2: [2]})
    code = FlatTable({0: ADD, 2: 2})
    path.write_bytes(tflite_model(tensors, [node], [code], ports=([0, 1], [2])))
    return path


@pytest.mark.usefixtures("litert")
def test_floats_for_quantized_inputs(tmp_path: Path) -> None:
    with open_model(quantized(tmp_path / "q.tflite")) as model:
        assert model.inputs[0].quantization == Quantization((0.5,), (3,))
        a, b = np.array([[1, 2, 100]], np.float32), np.array([[2, -1, 0]], np.float32)
        with pytest.raises(UsageError, match=r"is float32, expected int8; run\(..., floats=True\)"):
            model.run({"a": a, "b": b})
        made = model.run({"a": a, "b": b}, floats=True)["y"]
        np.testing.assert_array_equal(made, np.array([[3, 1, 62]], np.float32))  # 100 is held
        assert made.dtype == np.float32
        stored = model.run(
            {"a": np.array([[5, 7, 127]], np.int8), "b": np.array([[8, -4, 0]], np.int8)}
        )["y"]
        np.testing.assert_array_equal(stored, np.array([[-7, -9, 52]], np.int8))
        with pytest.raises(UsageError, match="input 'a': NaN cannot be quantized"):
            model.run({"a": np.full((1, 3), np.nan, np.float32), "b": b}, floats=True)


@pytest.mark.usefixtures("litert")
def test_shapes_that_vary(tmp_path: Path) -> None:
    tensors = [tflite_tensor(name, signature=(-1, 3)) for name in "aby"]
    node, code = FlatTable({0: 0, 1: [0, 1], 2: [2]}), FlatTable({0: ADD})
    path = tmp_path / "d.tflite"
    path.write_bytes(tflite_model(tensors, [node], [code], ports=([0, 1], [2])))
    with open_model(path) as model:
        assert model.inputs[0].shape == (None, 3)
        for rows in (1, 5, 2):
            given = np.ones((rows, 3), np.float32)
            np.testing.assert_array_equal(model.run({"a": given, "b": given})["y"], 2 * given)
        with pytest.raises(PenstockError, match="LiteRT failed with 'a' float32 2 x 3, 'b'"):
            model.run({"a": np.ones((2, 3), np.float32), "b": np.ones((4, 3), np.float32)})
        given = np.ones((3, 3), np.float32)
        np.testing.assert_array_equal(model.run({"a": given, "b": given})["y"], 2 * given)
        with pytest.raises(UsageError, match="input 'a' is empty"):
            model.run({"a": given[:0], "b": given})


@pytest.mark.usefixtures("litert")
def test_names_are_those_of_the_signature(tmp_path: Path) -> None:
    def entry(name: str, index: int) -> FlatTable:
        return FlatTable({0: name, 1: index})

    signature = FlatTable(
        {0: [entry("left", 0), entry("right", 1)], 1: [entry("sum", 2)], 2: "serving_default"}
    )
    node, code = FlatTable({0: 0, 1: [0, 1], 2: [2]}), FlatTable({0: ADD})
    tensors = [tflite_tensor(name) for name in ("serving_default_a:0", "b", "")]
    path = tmp_path / "s.tflite"
    path.write_bytes(
        tflite_model(tensors, [node], [code], ports=([1, 0], [2]), signatures=[signature])
    )
    with open_model(path) as model:
        assert [spec.name for spec in model.inputs] == ["right", "left"]
        one = np.ones((1, 3), np.float32)
        np.testing.assert_array_equal(model.run({"left": one, "right": one})["sum"], 2 * one)


@pytest.mark.usefixtures("litert")
def test_every_custom_operator_is_named(tmp_path: Path) -> None:
    tensors = [tflite_tensor(name) for name in "xaby"]
    nodes = [FlatTable({0: code, 1: [code], 2: [code + 1]}) for code in range(3)]
    operators = [FlatTable({0: CUSTOM, 1: name}) for name in ("Fold", "Unfold", "Fold")]
    path = tmp_path / "c.tflite"
    path.write_bytes(tflite_model(tensors, nodes, operators, ports=([0], [3])))
    with pytest.raises(UnsupportedModelError) as caught:
        open_model(path)
    said = str(caught.value)
    assert "LiteRT does not have 2 of its operators" in said
    assert "Fold (node '0, which makes a', '2, which makes y'); Unfold (node '1," in said


@pytest.mark.usefixtures("litert")
def test_an_operator_of_a_version_to_come(tmp_path: Path) -> None:
    node, code = FlatTable({0: 0, 1: [0, 1], 2: [2]}), FlatTable({0: ADD, 2: 99})
    path = tmp_path / "new.tflite"
    path.write_bytes(
        tflite_model([tflite_tensor(n) for n in "aby"], [node], [code], ports=([0, 1], [2]))
    )
    with pytest.raises(UnsupportedModelError, match=r"ADD \(node '0, which makes y'\)"):
        open_model(path)


@pytest.mark.usefixtures("litert")
def test_a_name_that_is_not_utf8(tflite_file: Path, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.tflite")
    try:
        os.rename(tflite_file, name)
    except OSError:
        pytest.skip("the file system wants UTF-8")
    with open_model(name) as model:
        assert model.run({"x": np.zeros((1, 3), np.float32)})["y"].shape == (1, 3)


@pytest.mark.usefixtures("litert")
@pytest.mark.parametrize(
    "name",
    [
        "vww_96_float.tflite", "vww_96_int8.tflite", "version-RFB-320.tflite",
        "mobilenet_v1_0.25_128_quant.tflite", "mobilenet_v2_1.0_224_quant.tflite",
    ],
)  # fmt: skip
def test_real_models(models_dir: Path, name: str) -> None:
    """Against the library itself, and against what it says of inputs and outputs."""
    path = models_dir / name
    stock = interpreter_class()(model_path=str(path), num_threads=1)
    stock.allocate_tensors()
    (detail,) = stock.get_input_details()
    rng = np.random.default_rng(0)
    real = rng.uniform(0, 1, detail["shape"]).astype(np.float32)
    with open_model(path, threads=1) as model:
        (spec,) = model.inputs
        assert spec.shape is not None and spec.dtype == np.dtype(detail["dtype"]).name
        assert [dim or -1 for dim in spec.shape] == list(detail["shape_signature"])
        scales = detail["quantization_parameters"]["scales"]
        assert (spec.quantization is None) == (len(scales) == 0)
        given = real
        if spec.quantization is not None:
            assert spec.quantization.scales == pytest.approx(scales)
            given = spec.quantization.quantize(real, spec.dtype)
        made = model.run({spec.name: given})
        floats = model.run({spec.name: real}, floats=True)
        if spec.shape[0] is None:
            twice = model.run({spec.name: np.concatenate([given, given])})
            for name, array in made.items():
                np.testing.assert_allclose(twice[name][1], array[0], rtol=1e-4, atol=1e-5)
    stock.set_tensor(detail["index"], given)
    stock.invoke()
    for out, spec in zip(stock.get_output_details(), model.outputs, strict=True):
        wanted = stock.get_tensor(out["index"])
        np.testing.assert_array_equal(made[spec.name], wanted)
        scale, zero = out["quantization"]
        real_wanted = wanted if scale == 0 else (wanted.astype(np.float32) - zero) * scale
        np.testing.assert_allclose(floats[spec.name], real_wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("litert")
def test_a_photo_of_a_parrot(models_dir: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    labels = (models_dir / "imagenet_labels.txt").read_text().splitlines()
    with open_model(models_dir / "mobilenet_v2_1.0_224_quant.tflite") as model:
        photo = image.open(models_dir / "parrot.jpg").convert("RGB").resize((224, 224))
        made = model.run({model.inputs[0].name: np.asarray(photo)[None]})
    (scores,) = made.values()
    best = int(scores.argmax())
    assert labels[best] == "macaw"


class Stand:
    """An interpreter that does nothing."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def allocate_tensors(self) -> None: ...


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Only these of the libraries are there."""
    for name in litert_model.LIBRARIES:
        monkeypatch.delitem(sys.modules, f"{name}.interpreter", raising=False)
        if name not in names:
            monkeypatch.setitem(sys.modules, name, None)
            continue
        package = ModuleType(name)
        package.__spec__ = importlib.util.spec_from_loader(name, None)
        package.__path__ = []
        module = ModuleType(f"{name}.interpreter")
        module.Interpreter = type("Interpreter", (Stand,), {"library": name})  # type: ignore
        monkeypatch.setitem(sys.modules, name, package)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_without_a_library(tflite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(BackendMissingError, match=r"pip install 'penstock\[litert\]'"):
        open_model(tflite_file)


def test_litert_goes_first(tflite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "ai_edge_litert", "tflite_runtime")
    assert interpreter_class().library == "ai_edge_litert"
    model = open_model(tflite_file, threads=3)
    assert isinstance(model, LitertModel)
    assert model._interpreter.options == {"model_path": str(tflite_file), "num_threads": 3}


def test_the_old_library_where_only_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "tflite_runtime")
    monkeypatch.setattr(litert_model, "np", SimpleNamespace(__version__="1.26.4"))
    assert interpreter_class().library == "tflite_runtime"


def test_the_old_library_does_not_work_with_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "tflite_runtime")
    monkeypatch.setattr(litert_model, "np", SimpleNamespace(__version__="2.4.6"))
    with pytest.raises(BackendMissingError, match="only tflite-runtime .* NumPy 1 .* NumPy 2.4.6"):
        interpreter_class()


def test_a_library_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "ai_edge_litert")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(BackendMissingError, match="ai_edge_litert is installed but cannot be"):
        interpreter_class()
