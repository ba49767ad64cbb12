"""`penstock inspect` of ONNX and TFLite files, and what the other commands say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.runtime.backends.tiny_models import (
    FlatTable,
    tflite_model,
    tflite_tensor,
    tiny_onnx,
    tiny_tflite,
)
from tests.cli.conftest import Cli


@pytest.fixture(params=["onnx", "tflite"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"tiny.{request.param}"
    path.write_bytes(tiny_onnx() if request.param == "onnx" else tiny_tflite())
    return path


def test_inputs_outputs_operators_and_size(cli: Cli, model: Path) -> None:
    result = cli("inspect", model, "--tensors")
    assert (result.code, result.err) == (0, "")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    shape = "N x 3" if model.suffix == ".onnx" else "1 x 3"
    assert f"x float32 {shape}" in lines and f"y float32 {shape}" in lines
    assert ("Add 1" if model.suffix == ".onnx" else "ADD 1") in lines
    assert "weights 1 tensors, 3 parameters" in lines
    assert "c float32 3 12 the file" in lines


def test_as_json(cli: Cli, model: Path) -> None:
    document = cli("inspect", model, "--json").json
    assert document["format"] == model.suffix[1:]
    assert (document["size"], document["parameters"]) == (model.stat().st_size, 3)
    assert document["inputs"][0]["name"] == "x" and document["outputs"][0]["dtype"] == "float32"
    assert sum(document["operators"].values()) == 1
    assert "tensors" not in document
    assert cli("inspect", model, "--json", "--tensors").json["tensors"][0]["shape"] == [3]


def test_there_is_nothing_to_verify(cli: Cli, model: Path) -> None:
    result = cli("inspect", model, "--verify")
    assert result.code == 2 and "no checksums" in result.err


def test_quantized_inputs(cli: Cli, tmp_path: Path) -> None:
    scales = {"a": (0.5, 3), "b": (0.5, -128), "y": (0.5, 0)}
    tensors = [tflite_tensor(name, dtype=9, quantization=q) for name, q in scales.items()]
    node, code = FlatTable({0: 0, 1: [0, 1], 2: [2]}), FlatTable({0: 0, 2: 2})
    path = tmp_path / "q.tflite"
    path.write_bytes(tflite_model(tensors, [node], [code], ports=([0, 1], [2])))
    out = cli("inspect", path).out
    assert "0.5 * (value - 3)" in out and "0.5 * (value + 128)" in out


def test_damage_is_one_line(cli: Cli, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-40])
    result = cli("inspect", model, "--json")
    assert (result.code, result.json["error"]["code"]) == (1, "FormatError")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "chat", "plan", "serve"])
def test_commands_for_text_say_what_to_do(cli: Cli, model: Path, command: str) -> None:
    result = cli(command, model, *(["text"] if command == "run" else []))
    assert result.code == 2
    assert "takes and gives arrays and not text" in result.err
    assert "penstock inspect" in result.err and "Traceback" not in result.err
