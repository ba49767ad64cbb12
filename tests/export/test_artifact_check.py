"""What is wrong with a written file is a gate; what is wrong with the data is the caller's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import UsageError
from penstock.export.artifact_check import Checked, check_artifact
from penstock.export.dataset import open_dataset, synthetic
from penstock.export.onnx.quantize import open_onnx
from penstock.loaders.tensor_graph import TensorSpec

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed")
INPUTS = (TensorSpec("x", "float32", (1, 6)),)


def linear(path: Path, scale: float = 1, width: int = 5, name: str = "x", rows: int = 6) -> Path:
    """y = scale * x w."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [name, "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info(name, kind, [1, rows])],
        [helper.make_tensor_value_info("y", kind, [1, width])],
        [onnx.numpy_helper.from_array(weight * np.float32(scale), "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def check(source: Path, written: Path, **options: Any) -> Checked:
    data = options.pop("data", synthetic(INPUTS, 3))
    return check_artifact(source, written, Path("out.onnx"), open_onnx, data, runs=2, **options)


def test_a_good_file(tmp_path: Path) -> None:
    source = linear(tmp_path / "a.onnx")
    found = check(source, linear(tmp_path / "b.onnx", scale=1.01))
    assert [(gate.name, gate.passed) for gate in found.gates] == [("loads", True), ("finite", True)]
    sqnr = next(metric for metric in found.metrics if metric.name == "sqnr_db")
    assert sqnr.samples == 3 and sqnr.after == pytest.approx(40, abs=0.1)
    assert found.before is not None and found.after is not None and found.after.runs == 2


@pytest.mark.parametrize(
    ("changes", "gate", "said"),
    [
        ({"width": 4}, "runs", "out.onnx: output 'y' is (1, 4) for random[0]"),
        ({"rows": 7}, "runs", "out.onnx: input 'x'"),
        ({"scale": np.inf}, "finite", "out.onnx: "),
    ],
)
def test_what_is_wrong_with_the_file(
    tmp_path: Path, changes: dict[str, Any], gate: str, said: str
) -> None:
    source, written = linear(tmp_path / "a.onnx"), linear(tmp_path / ".tmp", **changes)
    loads, failed = check(source, written).gates
    assert (loads.name, loads.detail) == ("loads", "loaded back")
    assert (failed.name, failed.passed) == (gate, False) and failed.detail.startswith(said)


def test_a_damaged_file(tmp_path: Path) -> None:
    source, written = linear(tmp_path / "a.onnx"), tmp_path / ".tmp"
    written.write_bytes(source.read_bytes()[:-40])
    (gate,) = check(source, written).gates
    assert (gate.name, gate.passed) == ("loads", False) and "out.onnx" in gate.detail


def test_data_that_does_not_fit_is_no_fault_of_the_file(tmp_path: Path) -> None:
    source, written = linear(tmp_path / "a.onnx"), linear(tmp_path / ".tmp")
    x, labels = np.ones((2, 6), np.float32), np.array([0, 5])
    np.savez(tmp_path / "d.npz", x=x, labels=labels)
    with pytest.raises(UsageError, match="label 5, and the model has classes 0 to 4"):
        check(source, written, data=open_dataset(tmp_path / "d.npz", INPUTS))
    with pytest.raises(UsageError, match="input 'x'"):
        check(source, written, data=synthetic((TensorSpec("x", "float32", (1, 9)),), 1))
