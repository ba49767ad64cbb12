"""The reader of TFLite files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import FormatError
from penstock.loaders.tensor_graph import Operation, Quantization, TensorSpec, Weight
from penstock.loaders.tflite_file import read_tflite
from penstock.loaders.tflite_operators import CUSTOM, OPERATORS, operator_name
from penstock.runtime.backends.tiny_models import (
    FlatTable,
    Scalar,
    Vector,
    serialize,
    tflite_model,
    tflite_tensor,
    tiny_tflite,
)

ADD, IF = 0, 118
BEHIND = Scalar(struct.pack("<Q", 500))


def add(**changes: Any) -> bytes:
    """y = a + b, with changes of `tflite_model`'s arguments."""
    arguments: dict[str, Any] = {
        "tensors": [tflite_tensor(name) for name in "aby"],
        "nodes": [FlatTable({0: 0, 1: [0, 1], 2: [2]})],
        "operators": [FlatTable({0: ADD})],
        "ports": ([0, 1], [2]),
    }
    return tflite_model(**{**arguments, **changes})


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_small_model(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tflite", tiny_tflite())
    graph = read_tflite(path)
    assert graph.inputs == (TensorSpec("x", "float32", (1, 3)),)
    assert graph.outputs == (TensorSpec("y", "float32", (1, 3)),)
    assert graph.operations == (Operation("0, which makes y", "ADD"),)
    assert graph.weights == (Weight("c", "float32", (3,), 12),)
    assert (graph.parameters, graph.size, graph.ports) == (3, path.stat().st_size, (0, 2))
    assert (graph.producer, graph.version) == ("penstock", "schema 3")


def test_the_names_of_operators() -> None:
    assert len(OPERATORS) == 208 and OPERATORS[CUSTOM] == "CUSTOM"
    assert [operator_name(n) for n in (9, 114, 127, 150, 207)] == [
        "FULLY_CONNECTED", "QUANTIZE", "PLACEHOLDER_FOR_GREATER_OP_CODES", "GELU", "COMPLEX",
    ]  # fmt: skip
    assert operator_name(1000) == "operator 1000"


def test_operators_beyond_the_old_field(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tflite", add(operators=[FlatTable({0: 127, 3: 150})]))
    assert read_tflite(path).operators == {"GELU": 1}


def test_quantization(tmp_path: Path) -> None:
    tensors = [
        tflite_tensor("a", dtype=9, quantization=(0.5, -3)),
        tflite_tensor("b", dtype=9),
        tflite_tensor("y", dtype=3, quantization=(0.0, 0)),
    ]
    graph = read_tflite(write(tmp_path / "m.tflite", add(tensors=tensors)))
    assert [spec.quantization for spec in (*graph.inputs, *graph.outputs)] == [
        Quantization((0.5,), (-3,)), None, None,
    ]  # fmt: skip


def odd_quantization(scales: bytes, zeros: bytes, axis: int) -> FlatTable:
    fields = dict(tflite_tensor("a").fields)
    fields[4] = FlatTable({2: Vector(scales, 4), 3: Vector(zeros, 8), 6: axis})
    return FlatTable(fields)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodes": [FlatTable({0: 7, 1: [0, 1], 2: [2]})]}, "its operator is number 7"),
        ({"nodes": [FlatTable({0: 0, 1: [0, 9], 2: [2]})]}, "ADD uses tensor 9; there are 3"),
        ({"nodes": [FlatTable({0: 0, 1: [0, -2], 2: [2]})]}, "uses tensor -2"),
        ({"nodes": [FlatTable({0: 0, 1: [0, 1], 2: [-1]})]}, "uses tensor -1"),
        ({"ports": ([0, 5], [2])}, "tensor 5 is an input or output"),
        ({"tensors": [tflite_tensor(n, buffer=4) for n in "aby"]}, "buffer 4; there are 1"),
        ({"tensors": [tflite_tensor(n, shape=(-1, 3)) for n in "aby"]}, r"shape \(-1, 3\)"),
        ({"tensors": [tflite_tensor(n, shape=(1 << 20,) * 3) for n in "aby"]}, "has shape"),
        ({"tensors": [tflite_tensor(n, signature=(-1,)) for n in "aby"]}, "where it may vary"),
        (
            {"tensors": [tflite_tensor(n, buffer=1) for n in "aby"], "buffers": [b"1234"]},
            r"'a' of float32 \(1, 3\) has 4 bytes, expected 12",
        ),
        ({"nodes": [FlatTable({0: 0, 1: [0, -1], 2: [2]})]}, "ADD lacks an input"),
        ({"operators": [FlatTable({0: 4})]}, r"DEPTHWISE_CONV_2D lacks .* it has \(0, 1\)"),
        ({"ports": ([0], [2])}, r"ADD reads \[1\] too early"),
        ({"nodes": [FlatTable({0: 0, 1: [0, 1], 2: [1]})]}, r"writes \(1,\) again"),
        ({"nodes": [FlatTable({0: 0, 1: [0, 1], 2: [2]})] * 2}, r"writes \(2,\) again"),
        ({"nodes": [FlatTable({0: 0, 1: [0, 1], 2: [2, 2]})]}, r"writes \(2, 2\) again"),
        (
            {"tensors": [tflite_tensor(n, buffer=1) for n in "aby"], "buffers": [bytes(12)]},
            "a constant is an input",
        ),
        (
            {"tensors": [tflite_tensor("a"), tflite_tensor("a"), tflite_tensor("y")]},
            "names appear twice: a, a",
        ),
        (
            {"tensors": [odd_quantization(struct.pack("<f", -1), bytes(8), 0)] * 3},
            "expected positive numbers",
        ),
        (
            {"tensors": [odd_quantization(struct.pack("<2f", 1, 1), bytes(16), 1)] * 3},
            r"2 scales along dimension 1 of \(1, 3\)",
        ),
        (
            {"tensors": [odd_quantization(struct.pack("<2f", 1, 1), bytes(24), 0)] * 3},
            "2 scales and 3 zero points",
        ),
        (
            {
                "operators": [FlatTable({0: IF})],
                "nodes": [FlatTable({0: 0, 1: [0], 2: [2], 3: 92, 4: FlatTable({0: 3, 1: 0})})],
            },
            r"IF runs subgraphs \[0, 3\]; there are 1",
        ),
        (
            {
                "operators": [FlatTable({0: IF})],
                "nodes": [FlatTable({0: 0, 1: [0], 2: [2], 3: 92, 4: FlatTable({0: 0, 1: 0})})],
            },
            "subgraph 0 runs itself",
        ),
        ({"signatures": [FlatTable({4: 0})]}, "it has no name"),
        ({"signatures": [FlatTable({2: "s", 4: 2})]}, "is of subgraph 2"),
        (
            {"signatures": [FlatTable({0: [FlatTable({0: "a", 1: 8})], 2: "s"})]},
            "is tensor 8, which is not there",
        ),
    ],
)
def test_what_points_nowhere(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read_tflite(write(tmp_path / "m.tflite", add(**changes)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({0: 4}, "the schema's version is 4, expected 3"),
        ({0: 3}, "there are no buffers"),
        ({0: 3, 4: [FlatTable({})]}, "it has 0 subgraphs"),
        ({0: 3, 4: [FlatTable({1: BEHIND, 2: BEHIND})]}, "bytes 500 to 1000, but the file has"),
    ],
)
def test_models_without_what_they_need(tmp_path: Path, fields: dict[int, Any], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        read_tflite(write(tmp_path / "m.tflite", serialize(FlatTable(fields))))


def test_a_vector_longer_than_the_file(tmp_path: Path) -> None:
    data = bytearray(add(nodes=[FlatTable({0: 0, 1: [0, 1, 77], 2: [2]})]))
    at = data.index(struct.pack("<4i", 3, 0, 1, 77))
    struct.pack_into("<I", data, at, 1 << 28)
    with pytest.raises(FormatError, match="announces 268435456 items, more than the file holds"):
        read_tflite(write(tmp_path / "m.tflite", bytes(data)))


def test_a_string_without_an_end(tmp_path: Path) -> None:
    data = bytearray(add())
    at = data.index(b"main\0")
    data[at + 4] = 1
    graph = read_tflite(write(tmp_path / "m.tflite", bytes(data)))
    assert graph.operators == {"ADD": 1}, "nobody reads that one"
    data = bytearray(add())
    at = data.index(b"penstock\0")
    data[at + 8] = 1
    with pytest.raises(FormatError, match="a string without an end"):
        read_tflite(write(tmp_path / "m.tflite", bytes(data)))


@pytest.mark.parametrize(
    "name",
    [
        "vww_96_float.tflite", "vww_96_int8.tflite", "version-RFB-320.tflite",
        "mobilenet_v1_0.25_128_quant.tflite", "mobilenet_v2_1.0_224_quant.tflite",
    ],
)  # fmt: skip
def test_real_models(shared_dir: Path, name: str) -> None:
    path = shared_dir / "data" / "models" / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    graph = read_tflite(path)
    (spec,) = graph.inputs
    assert spec.shape is not None and len(spec.shape) == 4
    assert graph.operators["CONV_2D"] > 10 and graph.parameters > 200_000
    quantized = "int8" in name or "quant" in name
    assert (spec.quantization is not None) == quantized
