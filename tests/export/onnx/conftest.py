"""Small ONNX models, made with onnx, whose outputs NumPy can compute too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.export.dataset import Dataset, open_dataset
from penstock.loaders.onnx_file import read_onnx

CLASSES = 5


@pytest.fixture(scope="session")
def onnx() -> Any:
    """The library; tests that write ONNX skip without it."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return pytest.importorskip("onnx", reason="onnx is not installed")


@pytest.fixture(scope="session")
def conv_model(onnx: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """image 1x3x16x16 -> conv, relu, depthwise conv, relu, pool, gemm, softmax; of opset 9, IR 3,
    with weights that are inputs too and nodes without names, as old exporters write it."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int, gain: float = 1) -> Any:
        values = rng.normal(0, gain / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        return onnx.numpy_helper.from_array(values, name)

    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], group=32, pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3", "b3"], ["c3"]),
        node("GlobalAveragePool", ["c3"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w4", "b4"], ["g"], transB=1),
        node("Softmax", ["g"], ["scores"]),
    ]
    weights = [
        weight("w1", 32, 3, 3, 3), weight("b1", 32), weight("w2", 32, 1, 3, 3),
        weight("w3", 128, 32, 1, 1), weight("b3", 128), weight("w4", CLASSES, 128, gain=8),
        weight("b4", CLASSES),
    ]  # fmt: skip
    info = onnx.helper.make_tensor_value_info
    inputs = [info("image", 1, [1, 3, 16, 16]), *(info(w.name, 1, w.dims) for w in weights)]
    graph = onnx.helper.make_graph(
        nodes, "tiny", inputs, [info("scores", 1, [1, CLASSES])], weights
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 9)])
    model.ir_version = 3
    path = tmp_path_factory.mktemp("models") / "conv.onnx"
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="session")
def matmul_model(onnx: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x batch x 64 -> MatMul, Add, Relu, Gemm: y batch x 16."""
    rng = np.random.default_rng(1)
    w1 = rng.normal(0, 0.1, (64, 96)).astype(np.float32)
    w2 = rng.normal(0, 0.1, (16, 96)).astype(np.float32)
    bias = rng.normal(0, 0.1, 96).astype(np.float32)
    array = onnx.numpy_helper.from_array
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("MatMul", ["x", "w1"], ["m"], name="first"),
            node("Add", ["m", "bias"], ["a"], name="add"),
            node("Relu", ["a"], ["r"], name="relu"),
            node("Gemm", ["r", "w2"], ["y"], name="second", transB=1),
        ],
        "tiny",
        [info("x", 1, ["batch", 64])],
        [info("y", 1, ["batch", 16])],
        [array(w1, "w1"), array(w2, "w2"), array(bias, "bias")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path_factory.mktemp("models") / "matmul.onnx"
    onnx.save(model, str(path))
    return path


Make = Callable[..., Dataset]


@pytest.fixture
def samples(tmp_path: Path) -> Make:
    """An .npz of normal inputs for a model, opened; keywords: arrays of one's own."""

    def make(model: Path, count: int = 8, seed: int = 0, **given: NDArray[Any]) -> Dataset:
        inputs = read_onnx(model).inputs
        rng = np.random.default_rng(seed)
        arrays: dict[str, NDArray[Any]] = {}
        for spec in inputs:
            shape = [count, *(dim for dim in (spec.shape or ())[1:] if isinstance(dim, int))]
            arrays[spec.name] = rng.normal(size=shape).astype(np.float32)
        path = tmp_path / f"samples-{count}-{seed}-{'-'.join(given)}.npz"
        np.savez(path, allow_pickle=False, **(arrays | given))
        return open_dataset(path, inputs)

    return make
