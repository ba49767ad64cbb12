"""The reader of ONNX files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from penstock.errors import FormatError
from penstock.loaders.onnx_file import read_onnx
from penstock.loaders.protobuf import encode
from penstock.loaders.tensor_graph import Operation, TensorSpec, Weight
from penstock.runtime.backends.tiny_models import onnx_model, onnx_value, tiny_onnx


def write(path: Path, *graph: tuple[int, object]) -> Path:
    path.write_bytes(onnx_model(list(graph)))
    return path


def model(*graph: tuple[int, bytes]) -> bytes:
    return onnx_model(list(graph))


def test_a_small_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_onnx())
    graph = read_onnx(path)
    assert graph.inputs == (TensorSpec("x", "float32", ("N", 3)),)
    assert graph.outputs == (TensorSpec("y", "float32", ("N", 3)),)
    assert graph.operations == (Operation("adder", "Add"),)
    assert graph.weights == (Weight("c", "float32", (3,), 12),)
    assert (graph.parameters, graph.size) == (3, path.stat().st_size)
    assert graph.version == "IR version 8, operators of ai.onnx 13"
    assert (graph.producer, graph.opsets) == ("penstock", {"": 13})


def test_weights_are_no_inputs(tmp_path: Path) -> None:
    """Before IR version 4 all weights were listed as inputs."""
    weight = encode((1, 2), (2, 1), (8, "w"), (9, struct.pack("<2f", 1, 2)))
    path = write(
        tmp_path / "m.onnx", (5, weight), (11, onnx_value("x", (2,))), (11, onnx_value("w", (2,)))
    )
    assert [spec.name for spec in read_onnx(path).inputs] == ["x"]


def test_shapes(tmp_path: Path) -> None:
    no_shape = encode((1, "a"), (2, encode((1, encode((1, 7))))))
    unnamed = encode((1, "b"), (2, encode((1, encode((1, 10), (2, encode((1, b""))))))))
    ports = [(11, no_shape), (11, unnamed), (11, onnx_value("c", ())), (11, onnx_value("d", (-1,)))]
    inputs = read_onnx(write(tmp_path / "m.onnx", *ports)).inputs
    assert [(s.dtype, s.shape) for s in inputs] == [
        ("int64", None), ("float16", (None,)), ("float32", ()), ("float32", (None,)),
    ]  # fmt: skip
    assert str(inputs[0]) == "int64 of any shape" and str(inputs[2]) == "float32 scalar"


def test_operators_in_graphs_in_nodes(tmp_path: Path) -> None:
    inner = encode((1, encode((2, "z"), (4, "Foo"), (7, "com.acme"))))
    path = write(
        tmp_path / "m.onnx", (1, encode((3, "if"), (4, "If"), (5, encode((1, "t"), (6, inner)))))
    )
    assert read_onnx(path).operators == {"com.acme.Foo": 1, "If": 1}
    assert Operation("z", "Foo", "com.acme") in read_onnx(path).operations


def nested(depth: int) -> bytes:
    graph = encode((1, encode((2, "y"), (4, "Relu"))))
    for _ in range(depth):
        graph = encode((1, encode((2, "y"), (4, "If"), (5, encode((6, graph))))))
    return encode((1, 8), (7, graph), (8, encode((2, 13))))


def test_a_depth_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(nested(30))
    assert len(read_onnx(path).operations) == 31
    path.write_bytes(nested(400))
    with pytest.raises(FormatError, match="more than 40 deep"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (encode((1, 8), (8, encode((2, 13)))), "there is no graph"),
        (encode((1, 8), (7, b"")), "the versions of its operators is missing"),
        (encode((1, 0), (7, b"")), "an IR version of 1 or more is missing"),
        (encode((1, 8), (7, 3)), "a number where a message was expected"),
        (b"\x08" + b"\xff" * 12, "a number does not end"),
        (encode((1, 8)) + b"\x03", "field number 0|wire type 3"),
        (encode((1, 8), (7, b""))[:-1] + b"\x7f", "needs 127 bytes but its message ends"),
        (encode((1, 8), (2, b"\xff\xfe"), (7, b"")), "the producer is not UTF-8"),
        (model((1, encode((2, "y")))), "a node without an operator"),
        (model((5, encode((1, -2), (2, 1)))), r"has shape \[-2\]"),
        (
            model((5, encode((1, 2), (2, 1), (8, "w"), (9, b"1234")))),
            r"'w' of float32 \[2\] has 4 bytes, expected 8",
        ),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=said):
        read_onnx(path)


def test_a_real_model(shared_dir: Path) -> None:
    path = shared_dir / "data" / "models" / "version-RFB-320.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    graph = read_onnx(path)
    assert graph.inputs == (TensorSpec("input", "float32", (1, 3, 240, 320)),)
    assert [spec.name for spec in graph.outputs] == ["scores", "boxes"]
    assert graph.operators["Conv"] > 30 and graph.parameters > 250_000
    assert graph.producer == "pytorch 1.2"
