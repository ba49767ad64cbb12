"""Files that are read, written again, and repaired compute what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import FormatError, PenstockError, UnsupportedModelError
from penstock.export.litert.flatbuffer_model import parse, read_model
from penstock.export.litert.flatbuffer_writer import serialize
from penstock.export.litert.repair import SIGNATURE, name_signature, repair
from penstock.export.litert.weight_layers import float_weights, stored_types, weight_layers
from penstock.loaders.tflite_file import read_tflite
from penstock.runtime.backends.open_model import open_model
from tests.export.litert.model_maker import CLASSES, SIDE, ModelMaker, small_cnn

REAL = ["vww_96_float", "vww_96_int8", "version-RFB-320", "mobilenet_v1_0.25_128_quant"]


def run(path: Path, seed: int = 0) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    with open_model(path, threads=1) as model:
        shapes = [[dim or 1 for dim in spec.shape or ()] for spec in model.inputs]
        fed = {
            spec.name: rng.random(shape).astype(np.float32)  # type: ignore[arg-type]
            for spec, shape in zip(model.inputs, shapes, strict=True)
        }
        return list(model.run(fed, floats=True).values())


def assert_same(before: Path, after: Path) -> None:
    for x, y in zip(run(before), run(after), strict=True):
        np.testing.assert_array_equal(x, y)


def old(maker: ModelMaker) -> ModelMaker:
    """As converters of schema 3 wrote files: codes in the old field only, names missing."""
    for code in maker.model.operatorCodes:
        code.builtinCode = 0
    return maker


@pytest.mark.parametrize("name", REAL)
def test_real_files_survive_being_written_again(
    models_dir: Path, tmp_path: Path, name: str
) -> None:
    source = models_dir / f"{name}.tflite"
    graph, model = read_model(source)
    out = tmp_path / "again.tflite"
    out.write_bytes(serialize(model))
    again = read_tflite(out)
    assert again.weights == graph.weights and again.operations == graph.operations
    assert again.inputs == graph.inputs and again.outputs == graph.outputs
    assert out.stat().st_size <= source.stat().st_size
    assert_same(source, out)


def test_buffers_begin_at_multiples_of_16_and_equal_vectors_are_shared(cnn_file: Path) -> None:
    _, model = read_model(cnn_file)
    data = serialize(model)
    for buffer in model.buffers[1:]:
        assert data.find(np.asarray(buffer.data).tobytes()) % 16 == 0
    zeros = np.zeros(1000, np.int64)
    for tensor in model.subgraphs[0].tensors[:4]:
        tensor.quantization = type_of_quantization(model)()
        tensor.quantization.zeroPoint = zeros.copy()
    assert len(serialize(model)) - len(data) < 2 * zeros.nbytes


def type_of_quantization(model: Any) -> Any:
    from ai_edge_litert.schema_py_generated import QuantizationParametersT

    return QuantizationParametersT


def test_repairs_are_told_and_change_nothing(tmp_path: Path) -> None:
    maker = old(small_cnn())
    names = [tensor.name for tensor in maker.graph.tensors]
    maker.graph.tensors[1].name = None
    maker.graph.tensors[2].name = names[3]
    source = maker.save(tmp_path / "old.tflite")
    graph, model = read_model(source)
    notes = repair(model, graph)
    assert [note.split()[0] for note in notes] == ["repaired", "added", "renamed"]
    assert "3 of 3 operator codes" in notes[0]
    assert SIGNATURE in notes[1] and "2 tensors" in notes[2]
    out = tmp_path / "repaired.tflite"
    out.write_bytes(serialize(model))
    assert_same(source, out)
    again_graph, again = read_model(out)
    assert repair(again, again_graph) == ()
    assert all(c.builtinCode == c.deprecatedBuiltinCode > 0 for c in again.operatorCodes)
    found = [tensor.name for tensor in again.subgraphs[0].tensors]
    assert len(set(found)) == len(found) and all(found)
    assert again_graph.inputs == graph.inputs and again_graph.outputs == graph.outputs


def test_a_signature_names_ports_in_their_order(cnn_file: Path, tmp_path: Path) -> None:
    _, model = read_model(cnn_file)
    name_signature(model, "serve", ["image"], ["scores"])
    out = tmp_path / "named.tflite"
    out.write_bytes(serialize(model))
    with open_model(out, threads=1) as named:
        made = named.run({"image": np.zeros((1, SIDE, SIDE, 3), np.float32)})
    assert list(made) == ["scores"] and made["scores"].shape == (1, CLASSES)


def test_layers_their_axes_and_types(cnn_file: Path) -> None:
    _, model = read_model(cnn_file)
    layers = weight_layers(model)
    assert [layer.name for layer in layers] == [
        "conv_2d_0", "depthwise_conv_2d_1", "conv_2d_2", "fully_connected_3",
    ]  # fmt: skip
    assert [layer.channels for layer in layers] == [16, 16, 64, CLASSES]
    assert stored_types(model) == ["float32"] * 4
    for layer, (name, expected) in zip(
        layers,
        [(n, w) for n, w in small_cnn().weights.items() if not n.endswith("/bias")],
        strict=True,
    ):
        weights = float_weights(model, layer)
        assert weights is not None, name
        np.testing.assert_array_equal(weights, expected)
        rows = layer.rows(weights)
        assert rows.shape[0] == layer.channels
        np.testing.assert_array_equal(layer.unrows(rows), weights)


def test_damaged_files_are_errors(cnn_file: Path, tmp_path: Path) -> None:
    data = cnn_file.read_bytes()
    path = tmp_path / "damaged.tflite"
    for cut in (3, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(FormatError, match="damaged.tflite"):
            read_model(path)
    rng = np.random.default_rng(0)
    for _ in range(60):  # whatever a flipped byte does, it is no other exception
        flipped = bytearray(data)
        flipped[rng.integers(0, 4000)] ^= 1 << rng.integers(0, 8)
        path.write_bytes(bytes(flipped))
        try:
            _, model = read_model(path)
        except PenstockError:
            continue
        assert serialize(model)
    with pytest.raises(FormatError, match="cannot be unpacked"):
        parse(b"\xff" * 64, "bytes")


def test_buffers_behind_the_flatbuffer(tmp_path: Path) -> None:
    maker = small_cnn()
    kept = maker.model.buffers[1].data.copy()
    maker.model.buffers[1].data = None
    maker.model.buffers[1].offset = maker.model.buffers[1].size = 1 << 20  # of a fixed width
    short = maker.save(tmp_path / "short.tflite")
    with pytest.raises(FormatError, match="short.tflite"):
        read_model(short)
    begin = -(-short.stat().st_size // 16) * 16
    maker.model.buffers[1].offset, maker.model.buffers[1].size = begin, kept.size
    path = maker.save(tmp_path / "behind.tflite")
    path.write_bytes(path.read_bytes().ljust(begin, b"\0") + kept.tobytes())
    _, model = read_model(path)
    np.testing.assert_array_equal(model.buffers[1].data, kept)
    whole = tmp_path / "whole.tflite"
    whole.write_bytes(serialize(model))
    assert_same(path, whole)
    assert_same(small_cnn().save(tmp_path / "plain.tflite"), whole)


def test_more_than_a_flatbuffer_holds_is_refused(cnn_file: Path) -> None:
    _, model = read_model(cnn_file)
    model.buffers[1].data = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.uint8), shape=(3 << 30,), strides=(0,)
    )
    with pytest.raises(UnsupportedModelError, match="do not fit one FlatBuffer"):
        serialize(model)
