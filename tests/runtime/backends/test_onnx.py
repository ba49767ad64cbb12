"""ONNX models in onnxruntime: results, inputs that are refused, operators that are not there."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import penstock
from penstock.errors import (
    BackendMissingError,
    FormatError,
    PenstockError,
    StorageError,
    UnsupportedModelError,
    UsageError,
)
from penstock.loaders.protobuf import encode
from penstock.loaders.tensor_graph import TensorSpec
from penstock.runtime.backends.onnx_model import OnnxModel
from penstock.runtime.backends.open_model import open_model
from penstock.runtime.backends.tensor_model import TensorModel
from penstock.runtime.backends.tiny_models import ADDEND, onnx_model, onnx_value

pytestmark = pytest.mark.usefixtures("onnxruntime")


def node(kind: str, name: str, *inputs: str, out: str = "y", domain: str = "") -> bytes:
    parts: list[tuple[int, str]] = [(1, source) for source in inputs]
    return encode(*parts, (2, out), (3, name), (4, kind), (7, domain))


def write(path: Path, *nodes: bytes, opsets: tuple[tuple[str, int], ...] = (("", 13),)) -> Path:
    """A model from x of N x 3 to y, both float32."""
    ports = [(11, onnx_value("x", ("N", 3))), (12, onnx_value("y", ("N", 3)))]
    path.write_bytes(onnx_model([*((1, made) for made in nodes), (2, "g"), *ports], *opsets))
    return path


def test_a_sum(onnx_file: Path) -> None:
    model = penstock.load(onnx_file, threads=1)
    assert isinstance(model, OnnxModel)
    assert (model.backend, model.threads, model.path) == ("onnx", 1, onnx_file)
    assert model.inputs == (TensorSpec("x", "float32", ("N", 3)),)
    assert model.outputs == (TensorSpec("y", "float32", ("N", 3)),)
    for rows in (1, 4, 0):
        given = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
        made = model.run({"x": given})
        assert list(made) == ["y"]
        np.testing.assert_array_equal(made["y"], given + np.array(ADDEND, np.float32))


def test_it_is_a_tensor_model(onnx_file: Path) -> None:
    model: TensorModel = open_model(onnx_file)
    with model as same:
        assert same is model and model.threads >= 1
    with pytest.raises(UsageError, match="the model is closed"):
        model.run({"x": np.zeros((1, 3), np.float32)})
    model.close()


def test_strided_arrays(onnx_file: Path) -> None:
    given = np.arange(12, dtype=np.float32).reshape(3, 4).T[:, ::1]
    made = open_model(onnx_file).run({"x": given})["y"]
    np.testing.assert_array_equal(made, given + np.array(ADDEND, np.float32))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "input 'x' is missing; the model's inputs are 'x'"),
        ({"X": np.zeros((1, 3), np.float32)}, "there is no input 'X'.*input 'x' is missing"),
        ({"x": np.zeros((1, 4), np.float32)}, "has shape 1 x 4, expected N x 3"),
        ({"x": np.zeros(3, np.float32)}, "has shape 3, expected N x 3"),
        ({"x": np.zeros((1, 3))}, "is float64, expected float32; array.astype"),
        ({"x": np.zeros((1, 3), ">f4")}, "is >f4, expected float32"),
        ({"x": [[1.0, 2.0, 3.0]]}, "is a list, expected a NumPy array of float32 N x 3"),
    ],
)
def test_inputs_that_do_not_fit(onnx_file: Path, inputs: dict[str, np.ndarray], said: str) -> None:
    with open_model(onnx_file) as model, pytest.raises(UsageError, match=said):
        model.run(inputs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_where_asked(onnx_file: Path, bad: float) -> None:
    given = np.array([[1, bad, 2]], np.float32)
    with open_model(onnx_file) as model:
        assert not np.isfinite(model.run({"x": given})["y"][0, 1])
        with pytest.raises(UsageError, match="input 'x' has values that are not finite"):
            model.run({"x": given}, finite=True)


def test_outputs_that_are_not_finite(tmp_path: Path) -> None:
    with open_model(write(tmp_path / "log.onnx", node("Log", "l", "x"))) as model:
        given = {"x": np.zeros((1, 3), np.float32)}
        assert np.isneginf(model.run(given)["y"]).all()
        with pytest.raises(PenstockError, match="output 'y' has values that are not finite"):
            model.run(given, finite=True)


@pytest.mark.parametrize("options", [{"memory": "1GiB"}, {"exact": True}, {"lora": ["x"]}])
def test_options_of_language_models(onnx_file: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="takes threads alone"):
        penstock.load(onnx_file, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="threads is 0"):
        penstock.load(onnx_file, threads=0)


def test_a_plan_is_for_language_models(onnx_file: Path) -> None:
    with pytest.raises(UsageError, match="takes and gives arrays and not text"):
        penstock.plan(onnx_file)


def test_every_operator_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "odd.onnx",
        node("Fold", "f1", "x", out="a", domain="com.acme"),
        node("Fold", "f2", "a", out="b", domain="com.acme"),
        node("Relu", "r", "b", out="c"),
        node("Frobnicate", "", "c"),
        opsets=(("", 13), ("com.acme", 1)),
    )
    with pytest.raises(UnsupportedModelError) as caught:
        open_model(path)
    said = str(caught.value)
    assert str(path) in said and "does not have 2 of its operators" in said
    assert "com.acme.Fold (node 'f1', 'f2')" in said and "Frobnicate (node 'y')" in said
    assert "Relu" not in said


def test_an_operator_that_is_not_there_for_a_type(tmp_path: Path) -> None:
    ports = [(11, onnx_value("x", (3,), 16)), (12, onnx_value("z", (3,), 1))]
    nodes = [
        node("LpNormalization", "n", "x"),
        encode((1, "y"), (2, "z"), (4, "Cast"), (5, cast())),
    ]
    path = tmp_path / "half.onnx"
    path.write_bytes(onnx_model([*((1, made) for made in nodes), (2, "g"), *ports]))
    with pytest.raises(UnsupportedModelError):
        open_model(path)


def cast() -> bytes:
    return encode((1, "to"), (3, 1), (20, 2))


def test_operators_of_a_version_to_come(tmp_path: Path) -> None:
    path = write(tmp_path / "new.onnx", node("Relu", "r", "x"), opsets=(("", 99),))
    with pytest.raises(UnsupportedModelError, match="too new for onnxruntime"):
        open_model(path)


def test_a_graph_that_makes_no_sense(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.onnx", node("Add", "a", "x", "nowhere"))
    with pytest.raises(FormatError, match="onnxruntime .* refuses it: .*nowhere"):
        open_model(path)


def test_a_run_that_fails(tmp_path: Path) -> None:
    """Shapes that only meet inside of the model; it can be used again."""
    ports = [(11, onnx_value(n, (n,))) for n in "ab"] + [(12, onnx_value("y", ("c",)))]
    path = tmp_path / "sum.onnx"
    path.write_bytes(onnx_model([(1, node("Add", "adder", "a", "b")), (2, "g"), *ports]))
    with open_model(path) as model:
        two, three = np.ones(2, np.float32), np.ones(3, np.float32)
        with pytest.raises(
            PenstockError, match="failed with 'a' float32 2, 'b' float32 3: .*adder"
        ):
            model.run({"a": two, "b": three})
        np.testing.assert_array_equal(model.run({"a": two, "b": two})["y"], 2 * two)


def test_a_sequence_is_no_array(tmp_path: Path) -> None:
    inside = encode((1, onnx_value("", ())))
    odd = encode((1, "s"), (2, encode((4, inside))))
    ports = [(11, odd), (12, onnx_value("y", (1,)))]
    path = tmp_path / "sequence.onnx"
    path.write_bytes(onnx_model([(1, node("SequenceLength", "n", "s")), (2, "g"), *ports]))
    with pytest.raises(UnsupportedModelError, match=r"'s' \(sequence\)"):
        open_model(path)


def external(path: Path, **entries: str) -> Path:
    """y = x + c, c of three floats in another file."""
    parts = [(13, encode((1, key), (2, value))) for key, value in entries.items()]
    constant = encode((1, 3), (2, 1), (8, "c"), *parts, (14, 1))
    ports = [(11, onnx_value("x", (3,))), (12, onnx_value("y", (3,)))]
    graph = [(1, node("Add", "a", "x", "c")), (2, "g"), (5, constant), *ports]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx_model(graph))
    return path


def test_weights_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path / "m" / "big.onnx", location="w/c.bin", offset="4", length="12")
    (tmp_path / "m" / "w").mkdir()
    (tmp_path / "m" / "w" / "c.bin").write_bytes(struct.pack("<4f", 0, 1, 2, 3))
    monkeypatch.chdir(tmp_path)
    for name in (path, path.relative_to(tmp_path)):
        with open_model(name) as model:
            made = model.run({"x": np.zeros(3, np.float32)})["y"]
        np.testing.assert_array_equal(made, [1, 2, 3])


def test_links_as_in_a_cache(tmp_path: Path) -> None:
    """Hugging Face's cache has the files in one folder and links to them in another."""
    stored = external(tmp_path / "blobs" / "1a2b", location="c.bin")
    (tmp_path / "blobs" / "3c4d").write_bytes(struct.pack("<3f", 1, 2, 3))
    folder = tmp_path / "snapshots" / "rev"
    folder.mkdir(parents=True)
    (folder / "model.onnx").symlink_to(stored)
    (folder / "c.bin").symlink_to(tmp_path / "blobs" / "3c4d")
    with open_model(folder / "model.onnx") as model:
        np.testing.assert_array_equal(model.run({"x": np.zeros(3, np.float32)})["y"], [1, 2, 3])


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret", "..\\secret", ""]
)
def test_weights_from_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(12))
    path = external(tmp_path / "m" / "model.onnx", location=location)
    with pytest.raises(FormatError, match="'c' are .* paths must stay inside the model's folder"):
        open_model(path)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(12))
    path = external(tmp_path / "m" / "model.onnx", location="c.bin")
    (tmp_path / "m" / "c.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match=f"a link to '{tmp_path}/secret'"):
        open_model(path)


def test_an_address_in_memory_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "m.onnx", location="*/_ORT_MEM_ADDR_/*", offset="4096", length="12")
    with pytest.raises(StorageError, match="not beside the model"):
        open_model(path)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"offset": "4"}, "bytes 4 to 16 of 'c.bin', which has 12"),
        ({"length": "8"}, "have 8 bytes, expected 12"),
        ({"offset": "-4"}, "bytes -4 to 8"),
        ({"offset": "many"}, "expected whole numbers"),
    ],
)
def test_ranges_that_are_not_there(tmp_path: Path, entries: dict[str, str], said: str) -> None:
    (tmp_path / "c.bin").write_bytes(bytes(12))
    path = external(tmp_path / "model.onnx", location="c.bin", **entries)
    with pytest.raises(FormatError, match=said):
        open_model(path)


def test_a_name_that_is_not_utf8(onnx_file: Path, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.onnx")
    try:
        os.rename(onnx_file, name)
    except OSError:
        pytest.skip("the file system wants UTF-8")
    with open_model(name) as model:
        assert model.run({"x": np.zeros((1, 3), np.float32)})["y"].shape == (1, 3)


def test_without_the_library(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendMissingError, match=r"pip install 'penstock\[onnx\]'"):
        open_model(onnx_file)


def test_a_library_that_cannot_be_imported(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("import penstock_no_such_module")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendMissingError, match="installed but cannot be imported"):
        open_model(onnx_file)


def test_strings(tmp_path: Path) -> None:
    ports = [(11, onnx_value("x", ("N",), 8)), (12, onnx_value("y", ("N",), 8))]
    path = tmp_path / "text.onnx"
    path.write_bytes(onnx_model([(1, node("Identity", "i", "x")), (2, "g"), *ports]))
    with open_model(path) as model:
        made = model.run({"x": np.array(["a", "é"])})["y"]
        assert list(made) == ["a", "é"]
        with pytest.raises(UsageError, match="is float64, expected strings"):
            model.run({"x": np.zeros(2)})


def test_a_face_detector(models_dir: Path) -> None:
    """RFB-320 against onnxruntime itself."""
    import onnxruntime

    path = models_dir / "version-RFB-320.onnx"
    given = np.random.default_rng(0).normal(size=(1, 3, 240, 320)).astype(np.float32)
    stock = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with open_model(path, threads=2) as model:
        assert [spec.name for spec in model.inputs] == [i.name for i in stock.get_inputs()]
        made = model.run({"input": given}, finite=True, floats=True)
    wanted = stock.run(None, {"input": given})
    assert list(made) == [o.name for o in stock.get_outputs()] == ["scores", "boxes"]
    for array, expected in zip(made.values(), wanted, strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5)


def test_the_library_is_asked_for_the_cpu(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SimpleNamespace()

    class Session:
        def __init__(self, source: object, options: SimpleNamespace, providers: list[str]) -> None:
            seen.source, seen.options, seen.providers = source, options, providers

        def get_outputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(shape=["N", 3])]

    stand_in = SimpleNamespace(
        __version__="0", InferenceSession=Session, SessionOptions=SimpleNamespace
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    open_model(onnx_file, threads=3)
    assert (seen.source, seen.providers) == (str(onnx_file), ["CPUExecutionProvider"])
    assert seen.options.intra_op_num_threads == 3
