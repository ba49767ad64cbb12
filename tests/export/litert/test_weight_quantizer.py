"""Weights in the file are those that were chosen. Oracle: LiteRT with the same weights in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.export.comparison import evaluator
from penstock.export.dataset import Dataset
from penstock.export.litert.flatbuffer_model import read_model
from penstock.export.litert.flatbuffer_writer import serialize
from penstock.export.litert.precision_builder import TflitePrecisionBuilder
from penstock.export.litert.weight_layers import stored_types, weight_layers
from penstock.export.litert.weight_quantizer import (
    layer_bytes,
    pack_int4,
    quantize_layer,
    store_weights,
)
from penstock.export.mixed_precision import choose_precisions, rank_layers
from penstock.loaders.tflite_file import read_tflite
from penstock.runtime.backends.open_model import open_model
from tests.export.litert.model_maker import INT32, ModelMaker, small_cnn

Images = Callable[..., Dataset]


def outputs(path: Path, data: Dataset) -> NDArray[Any]:
    with open_model(path, threads=1) as model:
        return np.stack([next(iter(model.run(s.arrays).values())) for s in data.samples()])


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_file_computes_with_the_chosen_weights(
    cnn_file: Path, tmp_path: Path, images: Images, precision: str
) -> None:
    _, model = read_model(cnn_file)
    layers = weight_layers(model)
    made = {layer.name: quantize_layer(model, layer, precision, None) for layer in layers}
    store_weights(model, made)
    assert stored_types(model) == [precision] * len(layers)
    small = tmp_path / "small.tflite"
    small.write_bytes(serialize(model))

    maker = small_cnn()  # the same weights, as floats
    for layer in layers:
        weights = made[layer.name]
        axes = [1] * len(layer.shape)
        axes[layer.axis] = layer.channels
        values = weights.levels * weights.scales.reshape(axes)
        tensor = maker.graph.tensors[layer.weights]
        maker.model.buffers[tensor.buffer].data = values.astype(np.float32).ravel().view(np.uint8)
    same = maker.save(tmp_path / "same.tflite")
    data = images(6)
    np.testing.assert_allclose(outputs(small, data), outputs(same, data), rtol=1e-4, atol=1e-5)


def test_int4_is_packed_low_half_first() -> None:
    levels = np.array([1, -1, 7, -7, 3], np.int8)
    assert pack_int4(levels).tolist() == [0xF1, 0x97, 0x03]
    assert levels.tolist() == [1, -1, 7, -7, 3]


def test_the_bias_takes_up_the_mean_error(cnn_file: Path, tmp_path: Path, images: Images) -> None:
    """Of the first layer alone, before its ReLU has bent anything."""
    maker = ModelMaker((1, 12, 12, 3))
    maker.conv("stem", 16, 3)
    maker.graph.operators[0].builtinOptions.fusedActivationFunction = 0
    source = maker.save(tmp_path / "stem.tflite")
    data, means = images(16), []
    for calibration in (None, data):
        builder = TflitePrecisionBuilder(source.read_bytes(), read_tflite(source), calibration)
        out = tmp_path / "small.tflite"
        builder.build({"conv_2d_0": "int4"}, out)
        error = outputs(out, data) - outputs(source, data)
        means.append(np.abs(error.mean(axis=(0, 1, 2, 3))).max())
    assert means[1] < 1e-5 < means[0] / 100


def test_shared_weights_and_biases_are_left_to_the_others(tmp_path: Path, images: Images) -> None:
    """Two layers with one bias, and two constants with one buffer."""
    maker = ModelMaker((1, 12, 12, 3))
    maker.conv("first", 3, 3)
    maker.conv("second", 3, 3)
    first, second = maker.graph.operators
    second.inputs[2] = first.inputs[2]
    tensors = maker.graph.tensors
    tensors[second.inputs[1]].buffer = tensors[first.inputs[1]].buffer
    source = maker.save(tmp_path / "shared.tflite")
    data = images(8)
    builder = TflitePrecisionBuilder(source.read_bytes(), read_tflite(source), data)
    out = tmp_path / "small.tflite"
    _, model = read_model(source)
    layer = weight_layers(model)[1]
    statistics = builder.statistics[layer.name]
    made = quantize_layer(model, layer, "int8", statistics)
    assert made.bias_shift is None
    store_weights(model, {layer.name: made})
    out.write_bytes(serialize(model))
    assert stored_types(read_model(out)[1]) == ["float32", "int8"]
    error = outputs(out, data) - outputs(source, data)
    assert 0 < np.abs(error).max() < 0.05


def test_one_weight_tensor_of_two_operators_is_unpacked_once(
    tmp_path: Path, images: Images
) -> None:
    maker = ModelMaker((1, 12, 12, 3))
    maker.conv("first", 3, 3)
    maker.conv("second", 3, 3)
    first, second = maker.graph.operators
    second.inputs[1] = first.inputs[1]
    source = maker.save(tmp_path / "shared.tflite")
    _, model = read_model(source)
    (layer,) = weight_layers(model)
    store_weights(model, {layer.name: quantize_layer(model, layer, "int8", None)})
    out = tmp_path / "small.tflite"
    out.write_bytes(serialize(model))
    assert [op.kind for op in read_tflite(out).operations].count("DEQUANTIZE") == 1
    error = outputs(out, images(4)) - outputs(source, images(4))
    assert 0 < np.abs(error).max() < 0.05


def test_sizes_are_foretold(cnn_file: Path, tmp_path: Path) -> None:
    builder = TflitePrecisionBuilder(cnn_file.read_bytes(), read_tflite(cnn_file))
    for precision in ("int8", "int4"):
        chosen = {x.name: precision for x in builder.layers if precision in x.bytes}
        told = builder.fixed_bytes + sum(
            layer.bytes[chosen.get(layer.name, "float")] for layer in builder.layers
        )
        assert abs(len(builder.content(chosen)) - told) < 120 * len(chosen)
    assert all(min(layer.bytes, key=layer.bytes.__getitem__) != "float" for layer in builder.layers)


def test_layers_that_would_grow_are_not_offered(tmp_path: Path) -> None:
    maker = ModelMaker((1, 12, 12, 3))
    maker.depthwise("tiny", 1)
    source = maker.save(tmp_path / "tiny.tflite")
    builder = TflitePrecisionBuilder(source.read_bytes(), read_tflite(source))
    assert builder.layers == ()
    (layer,) = builder.found.values()
    assert layer_bytes(layer, "int4") > layer_bytes(layer, "float") == 12


def test_a_mix_is_better_than_its_size_in_int4_alone(
    cnn_file: Path, tmp_path: Path, images: Images
) -> None:
    data = images(12)
    builder = TflitePrecisionBuilder(cnn_file.read_bytes(), read_tflite(cnn_file), data)
    with open_model(cnn_file, threads=1) as model:
        evaluate = evaluator(model, data)
    ranked = rank_layers(builder, evaluate)
    int4 = {layer.name: "int4" for layer in builder.layers if "int4" in layer.bytes}
    all_int4 = tmp_path / "int4.tflite"
    builder.build(int4, all_int4)
    room = all_int4.stat().st_size + 1_500
    mix = choose_precisions(builder, ranked, target_bytes=room, evaluate=evaluate)
    assert mix.evaluation is not None and mix.nbytes <= room
    assert mix.evaluation.sqnr_db > evaluate(all_int4).sqnr_db + 2


def test_what_is_not_known(cnn_file: Path) -> None:
    builder = TflitePrecisionBuilder(cnn_file.read_bytes(), read_tflite(cnn_file))
    with pytest.raises(UsageError, match="no float layer 'absent'"):
        builder.content({"absent": "int8"})
    with pytest.raises(UsageError, match="precision 'int3' is not known"):
        builder.content({"conv_2d_0": "int3"})
    _, model = read_model(cnn_file)
    layer = weight_layers(model)[0]
    made = quantize_layer(model, layer, "int8", None)
    with pytest.raises(UsageError, match="no layer 'absent'"):
        store_weights(model, {"absent": made})
    store_weights(model, {layer.name: made})
    with pytest.raises(UsageError, match="quantized already"):
        quantize_layer(model, weight_layers(model)[0], "int8", None)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_embeddings(tmp_path: Path, precision: str) -> None:
    maker = ModelMaker((5,))
    maker.graph.tensors[0].type = INT32
    table = maker.random("table", (40, 64), 1.0)
    maker.node(7, [maker.last, table], maker.tensor("rows", (5, 64)), None)
    source, out = maker.save(tmp_path / "embed.tflite"), tmp_path / "small.tflite"
    builder = TflitePrecisionBuilder(source.read_bytes(), read_tflite(source))
    builder.build({"embedding_lookup_0": precision}, out)
    ids = np.array([0, 39, 7, 7, 20], np.int32)
    with open_model(source, threads=1) as before, open_model(out, threads=1) as after:
        wanted, made = before.run({"x": ids})["rows"], after.run({"x": ids})["rows"]
    np.testing.assert_array_equal(wanted, maker.weights["table"][ids])
    step = np.abs(wanted).max(axis=1, keepdims=True) / {"int8": 127, "int4": 7}[precision]
    assert (np.abs(made - wanted) <= step * 0.5001).all()
    assert out.stat().st_size < source.stat().st_size / 2
