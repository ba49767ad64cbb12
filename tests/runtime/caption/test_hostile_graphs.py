"""Captioner files whose graphs load but are not what their manifest says: errors, no crashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from penstock.errors import FormatError, PenstockError, UnsupportedModelError
from penstock.export.captioner_bundle import write_captioner
from penstock.runtime.caption.captioner import load_captioner

VOCABULARY = 5
MANIFEST = {
    "architecture": "encoder-decoder",
    "image": {
        "size": 8, "resize": "stretch", "resample": "bilinear",
        "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1],
    },
    "generation": {"beams": 2, "max_tokens": 3, "end": 4},
    "decoder": {
        "layers": 1, "heads": 1, "head_width": 2, "vocabulary": VOCABULARY, "crop": 8,
        "positions": 80, "prompt": [0], "ends": [4],
    },
}  # fmt: skip
CROSS = ("cross_key.0", "cross_value.0")


def onnx_bytes(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> bytes:
    from onnx import helper

    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    return bytes(model.SerializeToString())


def encoder() -> bytes:
    """Pixels -> their mean as a key and a value."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("ReduceMean", ["pixels"], [n], keepdims=1) for n in CROSS]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 8, 8])
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 1, 1]) for n in CROSS]
    return onnx_bytes(nodes, [pixels], made)


def decoder(kind: str, shape: list[int] | None = None, value: float = 0.0) -> bytes:
    """The same logits whatever comes in: of this type and shape, or [beams, 5]."""
    from onnx import TensorProto, helper

    number = getattr(TensorProto, kind)
    if shape is None:
        row = helper.make_node(
            "Constant", [], ["row"],
            value=helper.make_tensor("r", TensorProto.FLOAT, [1, VOCABULARY], [value, 1, 3, 2, 0]),
        )  # fmt: skip
        tall = helper.make_node("Cast", ["parents"], ["ones"], to=TensorProto.FLOAT)
        nothing = helper.make_node("Sub", ["ones", "ones"], ["zeros"])
        column = helper.make_node("Unsqueeze", ["zeros", "last"], ["column"])
        last = helper.make_node(
            "Constant", [], ["last"], value=helper.make_tensor("l", TensorProto.INT64, [1], [1])
        )
        total = helper.make_node("Add", ["row", "column"], ["sum"])
        nodes = [row, tall, nothing, last, column, total]
        nodes.append(helper.make_node("Cast", ["sum"], ["logits"], to=number))
    else:
        like = helper.make_tensor("s", TensorProto.INT64, [len(shape)], shape)
        nodes = [helper.make_node("Constant", [], ["shape"], value=like)]
        fill = helper.make_tensor("v", TensorProto.FLOAT, [1], [value])
        nodes.append(helper.make_node("ConstantOfShape", ["shape"], ["sum"], value=fill))
        nodes.append(helper.make_node("Cast", ["sum"], ["logits"], to=number))
    for name in ("key.0", "value.0"):
        nodes.append(helper.make_node("Identity", [f"past_{name}"], [name]))
    names = [f"past_{n}" for n in ("key.0", "value.0")] + list(CROSS)
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT64, [None, None]),
        helper.make_tensor_value_info("parents", TensorProto.INT64, [None]),
        *(helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in names),
    ]
    outputs = [helper.make_tensor_value_info("logits", number, None)]
    outputs += [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4)
        for n in ("key.0", "value.0")
    ]
    return onnx_bytes(nodes, inputs, outputs)


def tokenizer() -> bytes:
    ids = {word: at for at, word in enumerate(("begin", "a", "cat", "sat", "end"))}
    return Tokenizer(models.WordLevel(ids, unk_token="a")).to_str().encode()


def captioner(path: Path, **members: bytes) -> Path:
    parts = {"encoder.onnx": encoder(), "tokenizer.json": tokenizer()}
    parts |= {name.replace("_", "."): data for name, data in members.items()}
    write_captioner(path, MANIFEST, parts)
    return path


def caption(path: Path) -> str:
    with load_captioner(path, threads=1) as loaded:
        return loaded.caption(np.zeros((9, 9, 3), np.uint8), beams=1).text


def test_the_tiny_captioner_works(tmp_path: Path) -> None:
    path = captioner(tmp_path / "x.captioner", decoder_onnx=decoder("FLOAT"))
    assert caption(path).split() == ["cat"] * 3


@pytest.mark.parametrize("kind", ["INT64", "BOOL", "DOUBLE", "FLOAT16"])
def test_logits_of_another_type(tmp_path: Path, kind: str) -> None:
    path = captioner(tmp_path / "x.captioner", decoder_onnx=decoder(kind))
    with pytest.raises(PenstockError, match=r"decoder.onnx: gave logits \w+ \[1, 5\], expected"):
        caption(path)


def test_logits_that_are_no_numbers(tmp_path: Path) -> None:
    path = captioner(tmp_path / "x.captioner", decoder_onnx=decoder("STRING"))
    with pytest.raises(UnsupportedModelError, match=r"'logits' \(string\)"):
        caption(path)


@pytest.mark.parametrize("shape", [[], [0], [5], [1, 4], [2, 5], [1, 1, 5]])
def test_logits_of_another_shape(tmp_path: Path, shape: list[int]) -> None:
    path = captioner(tmp_path / "x.captioner", decoder_onnx=decoder("FLOAT", shape))
    with pytest.raises(PenstockError, match="expected float32"):
        caption(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite(tmp_path: Path, value: float) -> None:
    path = captioner(tmp_path / "x.captioner", decoder_onnx=decoder("FLOAT", None, value))
    with pytest.raises(PenstockError, match="all finite"):
        caption(path)


def test_an_allocation_beyond_all_memory(tmp_path: Path) -> None:
    huge = decoder("FLOAT", [1 << 30, 1 << 30])
    path = captioner(tmp_path / "x.captioner", decoder_onnx=huge)
    with pytest.raises(PenstockError, match="decoder.onnx: onnxruntime"):
        caption(path)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "beside.bin"])
def test_weights_outside_of_the_file(tmp_path: Path, location: str) -> None:
    """What a graph says of other files is not followed, though they be there."""
    from onnx import TensorProto, helper

    (tmp_path / "beside.bin").write_bytes(bytes(4))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=1)
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 8, 8])
    nodes = [helper.make_node("Add", ["pixels", "w"], [name]) for name in CROSS]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in CROSS]
    graph = helper.make_graph(nodes, "g", [pixels], outputs, [tensor])
    data = helper.make_model(graph, ir_version=9).SerializeToString()
    path = captioner(tmp_path / "x.captioner", encoder_onnx=data, decoder_onnx=decoder("FLOAT"))
    with pytest.raises(FormatError, match="x.captioner: encoder.onnx: .*(inside|beside)"):
        caption(path)


# ---------------------------------------------------------------- LightCap

LIGHTCAP = {
    **MANIFEST,
    "architecture": "lightcap",
    "fusion": {
        "layers": 1, "heads": 1, "head_width": 2, "vocabulary": VOCABULARY, "concepts": 3,
        "begin": 0, "positions": 80,
    },
}  # fmt: skip
WORDS = b"begin\na\ncat\nsat\nend\n"


def constant(name: str, kind: str, values: list[float]) -> Any:
    from onnx import TensorProto, helper

    number = getattr(TensorProto, kind)
    made: list[Any] = [f"{v}".encode() for v in values] if kind == "STRING" else values
    tensor = helper.make_tensor(name, number, [1, len(values)], made)
    return helper.make_node("Constant", [], [name], value=tensor)


def lightcap(path: Path, concepts: tuple[str, list[float]], scores: tuple[str, list[float]],
             logits: tuple[str, list[float]]) -> Path:  # fmt: skip
    """A captioner whose graphs give these constants, whatever the photo."""
    from onnx import TensorProto, helper

    def floats(*names: str) -> list[Any]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names]

    def of(kind: str, name: str, shape: list[None] | None = None) -> Any:
        return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)

    identity = [helper.make_node("Identity", ["pixels"], ["grid"])]
    found = [constant("concepts", *concepts), constant("scores", *scores)]
    prefix = [helper.make_node("Identity", ["grid"], ["prefix"])]
    kept = [helper.make_node("Identity", [f"past_{n}"], [n]) for n in ("keys", "values")]
    pasts = ("prefix", "past_keys", "past_values")
    members = {
        "encoder.onnx": onnx_bytes(identity, floats("pixels"), floats("grid")),
        "concepts.onnx": onnx_bytes(
            found, floats("grid"), [of(concepts[0], "concepts"), of(scores[0], "scores")]
        ),
        "prefix.onnx": onnx_bytes(
            prefix,
            [of(concepts[0], "concepts"), of(scores[0], "scores"), *floats("grid")],
            floats("prefix"),
        ),
        "decoder.onnx": onnx_bytes(
            [constant("log_probabilities", *logits), *kept],
            [*(of("INT64", n) for n in ("tokens", "parents", "place")), *floats(*pasts)],
            [of(logits[0], "log_probabilities"), *floats("keys", "values")],
        ),
        "vocab.txt": WORDS,
        "concepts.txt": b"cat\ndog\nsofa\n",
    }
    write_captioner(path, LIGHTCAP, members)
    return path


SCORES = ("FLOAT", [0.9, 0.5])
LOGITS = ("FLOAT", [-9.0, -2.0, -1.0, -3.0, -4.0])


def test_the_tiny_lightcap_works(tmp_path: Path) -> None:
    path = lightcap(tmp_path / "x.captioner", ("INT64", [2, 0]), SCORES, LOGITS)
    with load_captioner(path, threads=1) as loaded:
        made = loaded.caption(np.zeros((9, 9, 3), np.uint8), beams=1)
    assert made.text == "cat cat cat"
    assert [(c.name, round(c.score, 3)) for c in made.concepts] == [("sofa", 0.9), ("cat", 0.5)]


@pytest.mark.parametrize(
    ("concepts", "scores"),
    [
        (("INT64", [3, 0]), SCORES),
        (("INT64", [-1, 0]), SCORES),
        (("INT64", [1]), SCORES),
        (("FLOAT", [1, 0]), SCORES),
        (("BOOL", [1, 0]), SCORES),
        (("INT64", [2, 0]), ("BOOL", [1, 0])),
        (("INT64", [2, 0]), ("FLOAT", [float("nan"), 0])),
        (("INT64", [2, 0]), ("FLOAT", [float("inf"), 0])),
    ],
)
def test_concepts_that_are_none(
    tmp_path: Path, concepts: tuple[str, list[float]], scores: tuple[str, list[float]]
) -> None:
    path = lightcap(tmp_path / "x.captioner", concepts, scores, LOGITS)
    with pytest.raises(PenstockError, match="concepts.onnx: gave concepts .* from 0 to 2"):
        caption(path)


@pytest.mark.parametrize(
    "logits",
    [
        ("FLOAT", [float("nan"), 0, 0, 0, 0]),
        ("FLOAT", [0, 0, 0, 0]),
        ("INT64", [-9, -2, -1, -3, -4]),
        ("BOOL", [0, 1, 0, 0, 0]),
        ("DOUBLE", [-9, -2, -1, -3, -4]),
    ],
)
def test_log_probabilities_that_are_none(tmp_path: Path, logits: tuple[str, list[float]]) -> None:
    path = lightcap(tmp_path / "x.captioner", ("INT64", [2, 0]), SCORES, logits)
    with pytest.raises(PenstockError, match="decoder.onnx: gave log-probabilities"):
        caption(path)


@pytest.mark.parametrize("value", [-float("inf"), float("inf")])
def test_captions_of_nothing_likely_come_to_an_end(tmp_path: Path, value: float) -> None:
    logits = ("FLOAT", [value] * VOCABULARY)
    path = lightcap(tmp_path / "x.captioner", ("INT64", [2, 0]), SCORES, logits)
    with load_captioner(path, threads=1) as loaded:
        for beams in (1, 3):
            made = loaded.caption(np.zeros((9, 9, 3), np.uint8), beams=beams)
            assert made.tokens <= 3
