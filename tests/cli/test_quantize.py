"""`penstock quantize` and `penstock export onnx`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x 1 x 64 -> y 1 x 32."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        "tiny",
        [info("x", 1, [1, 64])],
        [info("y", 1, [1, 32])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    made.ir_version = 8
    path = tmp_path / "model.onnx"
    onnx.save(made, str(path))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    rng = np.random.default_rng(1)
    np.savez(
        path,
        x=rng.normal(size=(10, 64)).astype(np.float32),
        labels=rng.integers(0, 32, 10),
    )
    return path


def test_tables_for_people(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    result = cli("quantize", model, out, "--recipe", "weight-int8", "--threads", "1")
    assert result.code == 0, result.err
    assert "weight-int8" in result.out and "passed  changed: 1 of 1" in result.out
    assert "p50 and p95 are of 50 runs on 1 thread" in result.out
    assert f"Wrote {out}" in result.err
    assert cli("quantize", model, out).code == 2
    assert cli("quantize", model, out, "--overwrite").code == 0


def test_json_with_everything(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    result = cli(
        "quantize", model, out, "--calibration", data, "--eval", data, "--sensitivity",
        "--samples", "4", "--fail-below", "sqnr_db=20", "--min-ratio", "1.5", "--json",
    )  # fmt: skip
    assert result.code == 0, result.out
    report = result.json
    assert report["recipe"] == "static-int8 minmax" and report["passed"]
    assert report["artifact_bytes"] == out.stat().st_size
    assert {"sqnr_db", "accuracy", "agreement"} <= {m["name"] for m in report["metrics"]}
    assert {s["precision"] for s in report["sensitivity"]} == {"int8", "int4"}
    scaled = cli("quantize", model, out, "--eval", data, "--overwrite", "--mean", "0.5")
    assert scaled.code == 2 and "of images; an .npz holds" in scaled.err


def test_a_refusal_is_an_error_with_its_report(
    cli: Cli, model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small.onnx"
    args = ("quantize", model, out, "--eval", data, "--recipe", "weight-int4")
    result = cli(*args, "--fail-below", "sqnr_db=60", "--json")
    assert result.code == 1 and not out.exists()
    error = result.json["error"]
    assert error["code"] == "GateError" and "sqnr_db" in error["message"]
    assert not error["report"]["passed"]
    result = cli(*args, "--fail-below", "sqnr_db=60")
    assert result.code == 1 and "FAILED  sqnr_db" in result.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--recipe", "int3"), "unknown recipe 'int3'"),
        (("--recipe", "static-int8"), "needs calibration data"),
        (("--fail-below", "accuracy"), "is not METRIC=VALUE"),
        (("--fail-below", "accuracy=0.9"), "there is no metric 'accuracy'"),
        (("--calibration", "nowhere"), "nowhere: not found"),
        (("--labels", "labels.csv"), "labels of which images"),
        (("--target-size", "much"), "'much' is not a size"),
        (("--mean", "a,b"), "is not a list of numbers"),
        (("--mean", "0.5"), "--mean needs data"),
        (("--value-range", "0,1"), "--value-range needs data"),
        (("--image-size", "224"), "takes height and width"),
        (("--image-size", "8,8.5"), "takes height and width"),
    ],
)
def test_wrong_usage(
    cli: Cli, model: Path, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    result = cli("quantize", model, tmp_path / "small.onnx", *args)
    assert result.code == 2 and message in result.err
    assert not (tmp_path / "small.onnx").exists()


def test_a_model_of_images_of_any_size(cli: Cli, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    info, rng = onnx.helper.make_tensor_value_info, np.random.default_rng(0)
    weight = rng.normal(size=(64, 3, 3, 3)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["c"]),
         onnx.helper.make_node("GlobalAveragePool", ["c"], ["y"])],
        "any", [info("x", 1, [1, 3, "h", "w"])], [info("y", 1, [1, 64, 1, 1])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    source, photos = tmp_path / "any.onnx", tmp_path / "photos"
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), str(source))
    photos.mkdir()
    for number in range(3):
        pixels = rng.integers(0, 255, (20, 30, 3), np.uint8)
        image.fromarray(pixels).save(photos / f"{number}.png")
    args = ("quantize", source, tmp_path / "small.onnx", "--calibration", photos)
    unsaid = cli(*args, "--threads", "1")
    assert unsaid.code == 2 and "--image-size" in unsaid.err
    said = cli(*args, "--threads", "1", "--image-size", "16,24", "--json")
    assert said.code == 0, said.out
    assert said.json["recipe"] == "static-int8 minmax" and said.json["passed"]


def test_gguf_files_go_elsewhere(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    result = cli("quantize", path, tmp_path / "small.gguf")
    assert result.code == 2 and "penstock export gguf" in result.err


def test_export_of_an_onnx_file(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.onnx"
    result = cli("export", "onnx", model, out, "--threads", "1")
    assert result.code == 0 and "computes the same" in result.out
    small = tmp_path / "small.onnx"
    result = cli(
        "export", "onnx", model, small, "--recipe", "static-int8", "--calibration", data, "--json"
    )
    assert result.code == 0 and result.json["precisions"] == {"layer": "int8"}
