"""A precision for each layer: sizes, formats, and what the search makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import UsageError
from penstock.export.dataset import Preprocessing, open_dataset
from penstock.export.mixed_precision import FLOAT
from penstock.export.onnx.calibration import calibrate
from penstock.export.onnx.layers import layer_formats
from penstock.export.onnx.node_choice import nodes_to_quantize
from penstock.export.onnx.precision_builder import OnnxPrecisionBuilder
from penstock.export.onnx.preparation import INT4_OPSET, PreparedModel, prepare_model
from penstock.export.onnx.quantize import quantize_onnx
from penstock.export.onnx.recipe import parse_recipe
from penstock.export.onnx.weight_only import CLIPS, pack_int4, quantize_channels
from penstock.export.precision_search import PrecisionSearch
from penstock.loaders.onnx_file import read_onnx
from penstock.runtime.backends.open_model import open_model
from tests.export.onnx.conftest import Make


@pytest.fixture(scope="module")
def prepared(conv_model: Path) -> PreparedModel:
    return prepare_model(conv_model, INT4_OPSET)


@pytest.mark.parametrize("kind", ["static-int8", "dynamic-int8", "weight-int8"])
def test_a_mix_has_the_precisions_asked_for(
    onnx: Any, prepared: PreparedModel, samples: Make, tmp_path: Path, kind: str
) -> None:
    recipe = parse_recipe(kind)
    ranges = calibrate(prepared, samples(prepared.source, 2), recipe)
    builder = OnnxPrecisionBuilder(prepared, recipe, ranges)
    wanted = {"c1": FLOAT, "c2": "int8", "c3": "int4", "g": "int8"}
    out = tmp_path / "mix.onnx"
    builder.build(wanted, out)
    model = onnx.load(str(out))
    onnx.checker.check_model(model, full_check=True)
    assert layer_formats(model.graph, prepared.layers) == wanted
    estimate = builder.fixed_bytes + sum(
        layer.bytes[wanted[layer.name]] for layer in builder.layers
    )
    assert out.stat().st_size == pytest.approx(estimate, rel=0.15)


def test_float_is_the_prepared_model(prepared: PreparedModel, tmp_path: Path) -> None:
    builder = OnnxPrecisionBuilder(prepared, parse_recipe("weight-int8"))
    builder.build({}, tmp_path / "float.onnx")
    size = (tmp_path / "float.onnx").stat().st_size
    assert size == builder.fixed_bytes + sum(layer.bytes[FLOAT] for layer in builder.layers)


def test_operators_between_quantized_layers_only(prepared: PreparedModel) -> None:
    graph = prepared.model.graph
    kinds = {node.name: node.op_type for node in graph.node}

    def chosen(*layers: str) -> list[str]:
        return [kinds[name] for name in nodes_to_quantize(graph, prepared.layers, layers)]

    assert chosen("c1", "c2", "c3", "g") == [
        "Conv", "Relu", "Conv", "Relu", "Conv", "GlobalAveragePool", "Flatten", "Gemm",
    ]  # fmt: skip
    assert chosen("c2") == ["Conv", "Relu"]
    assert chosen("g") == ["Gemm"]
    assert chosen() == []


def test_a_target_size_is_kept(conv_model: Path, samples: Make, tmp_path: Path) -> None:
    data = samples(conv_model, 4)
    sizes = {}
    for recipe in ("weight-int8", "weight-int4"):
        out = tmp_path / f"{recipe}.onnx"
        sizes[recipe] = quantize_onnx(conv_model, out, recipe, evaluation=data).artifact_bytes
    target = (sizes["weight-int8"] + sizes["weight-int4"]) // 2
    report = quantize_onnx(
        conv_model,
        tmp_path / "mix.onnx",
        "weight-int8",
        calibration=data,
        search=PrecisionSearch(sensitivity=True, target_bytes=target),
        threads=1,
    )
    assert report.artifact_bytes <= target
    assert {"int8", "int4"} <= set(report.precisions.values())
    ranked = [one.sqnr_db for one in report.sensitivity]
    assert ranked == sorted(ranked) and len(ranked) == 8
    with pytest.raises(UsageError, match="cannot be met: the smallest mix"):
        quantize_onnx(
            conv_model,
            tmp_path / "none.onnx",
            "weight-int8",
            calibration=data,
            search=PrecisionSearch(target_bytes=2000),
        )
    with pytest.raises(UsageError, match="needs data with labels"):
        quantize_onnx(
            conv_model, tmp_path / "none.onnx", "weight-int8", search=PrecisionSearch(max_drop=0.1)
        )
    assert not (tmp_path / "none.onnx").exists()


def test_a_greatest_drop_is_kept(conv_model: Path, samples: Make, tmp_path: Path) -> None:
    plain = samples(conv_model, 20, seed=5)
    with open_model(conv_model, threads=1) as model:
        labels = [int(model.run(s.arrays)["scores"].argmax()) for s in plain.samples()]
    data = samples(conv_model, 20, seed=5, labels=np.array(labels))
    report = quantize_onnx(
        conv_model,
        tmp_path / "mix.onnx",
        "weight-int8",
        evaluation=data,
        search=PrecisionSearch(max_drop=0.1),
        threads=1,
    )
    accuracy = report.metric("accuracy")
    assert accuracy.before == 1 and accuracy.after >= 0.9
    assert any("chosen on the data that it is reported on" in note for note in report.notes)
    assert report.ratio > 2 and "int4" in report.precisions.values()


def test_int4_scales_are_the_best_of_those_tried() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_t(3, size=(6, 40)).astype(np.float32)
    integers, scales = quantize_channels(weight, 0, "int4")
    assert np.abs(integers).max() <= 7

    def error(row: int, scale: float) -> float:
        q = np.clip(np.rint(weight[row] / scale), -7, 7)
        return float(((q * scale - weight[row]) ** 2).sum())

    for row in range(6):
        least = min(error(row, np.abs(weight[row]).max() * clip / 7) for clip in CLIPS)
        made = float(((integers[row] * scales[row] - weight[row]) ** 2).sum())
        assert made == pytest.approx(least, rel=1e-4)


def test_channels_of_zeros_and_other_axes() -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[0, 1] = 5
    for axis in (0, 1):
        integers, scales = quantize_channels(weight, axis, "int8")
        shape = (-1, 1) if axis == 0 else (1, -1)
        np.testing.assert_allclose(integers * scales.reshape(shape), weight, rtol=1e-6)


def test_packing_is_that_of_onnx(onnx: Any) -> None:
    values = np.array([[-8, 7, 1], [0, -1, 3]], np.int8)
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.INT4, (2, 3), pack_int4(values), True)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), values)


def test_a_mix_of_the_face_detector(shared_dir: Path, onnx: Any, tmp_path: Path) -> None:
    """RFB-320: a mix of int4, int8 and float is smaller than static int8, and no worse."""
    source = shared_dir / "data" / "models" / "version-RFB-320.onnx"
    photos = shared_dir / "data" / "photos" / "coco"
    if not source.is_file() or not photos.is_dir():
        pytest.skip(f"{source} or {photos} is not there")
    inputs = read_onnx(source).inputs
    scaling = Preprocessing(value_range=(0, 255), mean=(127,), std=(128,))
    calibration = open_dataset(photos / "val2017", inputs, preprocessing=scaling)
    recipe = parse_recipe("static-int8 per-channel reduce-range")
    prepared = prepare_model(source, INT4_OPSET)
    builder = OnnxPrecisionBuilder(
        prepared, recipe, calibrate(prepared, calibration, recipe, limit=4)
    )
    assert len(builder.layers) == 52
    large = {x.name for x in builder.layers if x.parameters >= 4096}
    mix = {x.name: "int4" if x.name in large else "int8" for x in builder.layers}
    whole, mixed = tmp_path / "int8.onnx", tmp_path / "mix.onnx"
    builder.build({x.name: "int8" for x in builder.layers}, whole)
    builder.build(mix, mixed)
    assert mixed.stat().st_size < 0.85 * whole.stat().st_size
    assert read_onnx(mixed).outputs[0].name == "scores"
