"""One artifact and one report, or an error and nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import (
    FormatError,
    PenstockError,
    StorageError,
    UnsupportedModelError,
    UsageError,
)
from penstock.export.dataset import open_dataset
from penstock.export.gates import Floors, GateError
from penstock.export.onnx.quantize import quantize_onnx
from penstock.export.report import Progress
from penstock.loaders.onnx_file import read_onnx
from penstock.runtime.backends.open_model import open_model
from penstock.runtime.backends.tiny_models import onnx_model, onnx_value
from tests.export.onnx.conftest import CLASSES, Make
from tests.runtime.backends.damage_child import damaged

CONV_LAYERS = {"c1", "c2", "c3", "g"}


def stored_types(onnx: Any, path: Path) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}


@pytest.mark.parametrize(
    ("recipe", "least_db", "ratio"),
    [
        ("dynamic-int8", 30, 1.5),
        ("static-int8", 25, 1.3),
        ("static-int8 percentile=99.99", 20, 1.3),
        ("static-int8 entropy", 10, 1.3),
        ("static-int8 per-channel reduce-range", 25, 1.2),
        ("static-int8 symmetric", 20, 1.3),
        ("weight-int8", 35, 1.8),
        ("weight-int4", 15, 2.2),
    ],
)
def test_recipes_on_an_old_convolutional_model(
    conv_model: Path, samples: Make, tmp_path: Path, recipe: str, least_db: float, ratio: float
) -> None:
    out = tmp_path / "small.onnx"
    report = quantize_onnx(
        conv_model,
        out,
        recipe,
        calibration=samples(conv_model),
        evaluation=samples(conv_model, seed=1),
        threads=1,
    )
    assert out.stat().st_size == report.artifact_bytes < report.source_bytes
    assert report.metric("sqnr_db").after > least_db
    assert report.ratio > ratio
    wanted = {"int4" if recipe == "weight-int4" else "int8"}
    assert set(report.precisions.values()) == wanted and set(report.precisions) == CONV_LAYERS
    assert report.passed and {"loads", "changed", "smaller", "finite"} <= {
        gate.name for gate in report.gates
    }
    assert report.latency_before is not None and report.latency_after is not None
    assert any("opset raised from 9" in note for note in report.notes)
    with open_model(out, threads=1) as model:
        image = np.zeros((1, 3, 16, 16), np.float32)
        assert model.run({"image": image})["scores"].shape == (1, CLASSES)


def test_the_reported_sqnr_is_that_of_the_file(
    conv_model: Path, samples: Make, tmp_path: Path
) -> None:
    out, data = tmp_path / "small.onnx", samples(conv_model, seed=4)
    report = quantize_onnx(conv_model, out, "weight-int4", evaluation=data, threads=1)
    with open_model(conv_model, threads=1) as before, open_model(out, threads=1) as after:
        pairs = [
            (before.run(s.arrays)["scores"], after.run(s.arrays)["scores"]) for s in data.samples()
        ]
    signal = sum(float((x.astype(float) ** 2).sum()) for x, _ in pairs)
    noise = sum(float(((x.astype(float) - y) ** 2).sum()) for x, y in pairs)
    assert report.metric("sqnr_db").after == pytest.approx(10 * np.log10(signal / noise))


@pytest.mark.parametrize(
    ("recipe", "least_db"),
    [
        ("block-int4", 15),
        ("block-int4 symmetric block=16", 15),
        ("block-int4 k-quant", 15),
        ("block-int4 hqq", 15),
        ("block-int4 gptq", 15),
        ("block-int4 qdq", 15),
        ("block-int8", 40),
        ("block-int4 gptq block=16", 15),
        ("dynamic-int8", 30),
        ("weight-int4", 12),
    ],
)
def test_recipes_on_matrices(
    matmul_model: Path, samples: Make, tmp_path: Path, recipe: str, least_db: float
) -> None:
    if "hqq" in recipe:
        pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("onnx_ir", reason="onnx-ir is not installed")
    out = tmp_path / "small.onnx"
    report = quantize_onnx(
        matmul_model,
        out,
        recipe,
        calibration=samples(matmul_model, 16),
        evaluation=samples(matmul_model, 16, seed=1),
        threads=1,
    )
    bits = "int4" if "int4" in recipe else "int8"
    assert report.precisions == {"first": bits, "second": bits}
    assert report.metric("sqnr_db").after > least_db


def test_a_quantizer_that_does_nothing_is_refused(matmul_model: Path, tmp_path: Path) -> None:
    """onnxruntime logs an error and saves the float model when asked for 8 bits as QDQ."""
    pytest.importorskip("onnx_ir", reason="onnx-ir is not installed")
    out = tmp_path / "small.onnx"
    with pytest.raises(GateError, match="changed: 0 of 2 weighted layers") as refused:
        quantize_onnx(matmul_model, out, "block-int8 qdq", threads=1)
    assert not refused.value.report.passed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("floors", "gate"),
    [
        (Floors({"sqnr_db": 90.0}), "sqnr_db"),
        (Floors({"cosine:nothing": 1.0}), None),
        (Floors(min_ratio=20.0), "min-ratio"),
    ],
)
def test_floors(matmul_model: Path, tmp_path: Path, floors: Floors, gate: str | None) -> None:
    out = tmp_path / "small.onnx"
    expected = UsageError if gate is None else GateError
    with pytest.raises(expected) as refused:
        quantize_onnx(matmul_model, out, "weight-int4", floors=floors, threads=1)
    if isinstance(refused.value, GateError):
        assert [g.name for g in refused.value.report.gates if not g.passed] == [gate]
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_will_not_be_taken_is_said_before_the_work(
    conv_model: Path, samples: Make, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    with pytest.raises(UsageError, match=r"no metric 'accuracy' .* needs labels \(--labels\)"):
        quantize_onnx(
            conv_model,
            tmp_path / "small.onnx",
            "static-int8",
            calibration=samples(conv_model, 4),
            floors=Floors({"sqnr_db": 1.0, "accuracy": 0.9}),
            threads=1,
            progress=seen.append,
        )
    assert seen == []


def test_labels_give_the_accuracy(conv_model: Path, samples: Make, tmp_path: Path) -> None:
    plain = samples(conv_model, 12, seed=2)
    with open_model(conv_model, threads=1) as model:
        right = [int(model.run(s.arrays)["scores"].argmax()) for s in plain.samples()]
    wrong = [(label + 1) % CLASSES for label in right[:3]]
    data = samples(conv_model, 12, seed=2, labels=np.array(wrong + right[3:]))
    report = quantize_onnx(
        conv_model, tmp_path / "small.onnx", "weight-int8", evaluation=data, threads=1
    )
    accuracy = report.metric("accuracy")
    assert accuracy.before == 9 / 12 and abs(accuracy.after - 9 / 12) <= 1 / 12


def test_labels_of_another_model(conv_model: Path, samples: Make, tmp_path: Path) -> None:
    data = samples(conv_model, 4, labels=np.array([0, 1, 2, CLASSES]))
    with pytest.raises(UsageError, match="label 5, and the model has classes 0 to 4"):
        quantize_onnx(
            conv_model, tmp_path / "small.onnx", "weight-int8", evaluation=data, threads=1
        )
    assert not (tmp_path / "small.onnx").exists()


def test_nan_in_calibration_data(conv_model: Path, samples: Make, tmp_path: Path) -> None:
    image = np.zeros((3, 3, 16, 16), np.float32)
    image[1, 0, 5, 5] = np.nan
    with pytest.raises(UsageError, match=r"npz\[1\].*NaN"):
        quantize_onnx(
            conv_model,
            tmp_path / "small.onnx",
            "static-int8",
            calibration=samples(conv_model, 3, image=image),
        )
    assert not (tmp_path / "small.onnx").exists()


def test_calibration_data_of_another_shape(conv_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, image=np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(UsageError, match="image"):
        open_dataset(path, read_onnx(conv_model).inputs)


def test_what_cannot_be_started(conv_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    with pytest.raises(UsageError, match="needs calibration data"):
        quantize_onnx(conv_model, out, "static-int8")
    with pytest.raises(UsageError, match="ends in .onnx"):
        quantize_onnx(conv_model, tmp_path / "small.tflite", "dynamic-int8")
    with pytest.raises(StorageError, match="no such folder"):
        quantize_onnx(conv_model, tmp_path / "nowhere" / "small.onnx", "dynamic-int8")
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        quantize_onnx(conv_model, out, "dynamic-int8")
    assert out.read_bytes() == b"mine"


def test_a_refused_artifact_leaves_the_old_one(matmul_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    out.write_bytes(b"mine")
    with pytest.raises(GateError):
        quantize_onnx(
            matmul_model, out, "weight-int4", floors=Floors(min_ratio=50.0), overwrite=True
        )
    assert out.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("cut", [0, 10, 3000])
def test_damaged_sources(conv_model: Path, tmp_path: Path, cut: int) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(conv_model.read_bytes()[:cut])
    with pytest.raises(FormatError, match="broken.onnx"):
        quantize_onnx(broken, tmp_path / "small.onnx", "dynamic-int8")
    assert not (tmp_path / "small.onnx").exists()


def test_a_model_that_is_quantized_already(conv_model: Path, samples: Make, tmp_path: Path) -> None:
    once = tmp_path / "once.onnx"
    quantize_onnx(conv_model, once, "static-int8", calibration=samples(conv_model), threads=1)
    with pytest.raises(UsageError, match="if it is quantized already"):
        quantize_onnx(once, tmp_path / "twice.onnx", "weight-int8", threads=1)
    assert not (tmp_path / "twice.onnx").exists()


@pytest.mark.parametrize("seed", range(10))
def test_damaged_copies_are_refused_or_quantized(
    conv_model: Path, samples: Make, tmp_path: Path, seed: int
) -> None:
    copy, out = tmp_path / "copy.onnx", tmp_path / "small.onnx"
    copy.write_bytes(damaged(conv_model.read_bytes(), seed))
    recipe = ("static-int8", "dynamic-int8", "weight-int4")[seed % 3]
    try:
        report = quantize_onnx(copy, out, recipe, calibration=samples(conv_model, 2), threads=1)
    except PenstockError as error:
        assert str(error) and not out.exists()
    else:
        assert report.passed and out.exists()


@pytest.mark.usefixtures("onnx")
def test_operators_that_onnxruntime_lacks(tmp_path: Path) -> None:
    from penstock.loaders.protobuf import encode

    node = encode((1, "x"), (2, "y"), (3, "strange"), (4, "Frobnicate"))
    path = tmp_path / "odd.onnx"
    ports = [(11, onnx_value("x", (1, 3))), (12, onnx_value("y", (1, 3)))]
    path.write_bytes(onnx_model([(1, node), (2, "g"), *ports]))
    with pytest.raises(UnsupportedModelError, match=r"Frobnicate \(node 'strange'\)"):
        quantize_onnx(path, tmp_path / "small.onnx", "dynamic-int8")


def test_a_model_without_layers(onnx: Any, tmp_path: Path) -> None:
    from penstock.runtime.backends.tiny_models import tiny_onnx

    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny_onnx())
    with pytest.raises(UsageError, match="no layers with constant float weights"):
        quantize_onnx(path, tmp_path / "small.onnx", "weight-int8")
    assert not (tmp_path / "small.onnx").exists()


def test_scales_of_channels_that_onnxruntime_does_not_make(
    conv_model: Path, matmul_model: Path, tmp_path: Path
) -> None:
    """It takes the word for convolutions and writes the file that it writes without."""
    made = {}
    for recipe in ("dynamic-int8", "dynamic-int8 per-channel"):
        for source in (conv_model, matmul_model):
            out = tmp_path / f"{source.stem} {recipe}.onnx"
            report = quantize_onnx(source, out, recipe, threads=1)
            told = [note for note in report.notes if "have one scale" in note]
            made[source, recipe] = (told, out.stat().st_size)
    told, _ = made[conv_model, "dynamic-int8 per-channel"]
    assert told == [
        "3 of 4 layers (Conv) have one scale: onnxruntime's dynamic quantization knows no "
        "per-channel for them; static-int8 and weight-int8 do"
    ]
    assert made[conv_model, "dynamic-int8"][0] == []
    assert made[matmul_model, "dynamic-int8 per-channel"][0] == []
    assert made[matmul_model, "dynamic-int8 per-channel"][1] > made[matmul_model, "dynamic-int8"][1]


@pytest.mark.parametrize("recipe", ["block-int4", "block-int8 qdq", "block-int4 gptq"])
def test_blocks_of_a_model_without_matrices(
    onnx: Any, samples: Make, tmp_path: Path, recipe: str
) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="c")],
        "conv",
        [info("x", 1, [1, 3, 8, 8])],
        [info("y", 1, [1, 4, 6, 6])],
        [onnx.numpy_helper.from_array(values, "w")],
    )
    path, out = tmp_path / "conv.onnx", tmp_path / "small.onnx"
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    with pytest.raises(UsageError, match="MatMul and Gemm alone, and all of its 1 layers are Conv"):
        quantize_onnx(path, out, recipe, calibration=samples(path, 2), threads=1)
    assert not out.exists()


@pytest.mark.parametrize("recipe", ["dynamic-int8", "weight-int4", "block-int4"])
def test_weights_that_are_not_finite(
    onnx: Any, matmul_model: Path, tmp_path: Path, recipe: str
) -> None:
    model = onnx.load(str(matmul_model))
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "w2")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3, 5] = np.inf
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "w2"))
    path = tmp_path / "broken.onnx"
    onnx.save(model, str(path))
    with pytest.raises(UsageError, match=r"broken.onnx: weight 'w2' of layer 'second' has NaN or"):
        quantize_onnx(path, tmp_path / "small.onnx", recipe, threads=1)
    assert not (tmp_path / "small.onnx").exists()


def test_int4_is_stored_in_half_bytes(onnx: Any, conv_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    quantize_onnx(conv_model, out, "weight-int4", threads=1)
    assert onnx.TensorProto.INT4 in stored_types(onnx, out)
    for tensor in onnx.load(str(out)).graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT4:
            assert len(tensor.raw_data) == (np.prod(tensor.dims) + 1) // 2
