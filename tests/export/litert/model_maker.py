"""TFLite models of a few random layers, written with the schema's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

SIDE = 12
CLASSES = 4
FLOAT32, INT32 = 0, 2


class ModelMaker:
    """A TFLite model, node by node; every weight random and reproducible."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        generated = pytest.importorskip(
            "ai_edge_litert.schema_py_generated", reason="ai-edge-litert is not installed"
        )
        self.schema: Any = generated
        self.rng = np.random.default_rng(seed)
        self.model = generated.ModelT()
        self.model.version = 3
        self.model.description = "test"
        self.model.buffers = [generated.BufferT()]
        self.model.operatorCodes = []
        self.graph = generated.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]
        self.last = self.tensor("x", shape)
        self.graph.inputs = [self.last]
        self.graph.outputs = []
        self.weights: dict[str, NDArray[np.float32]] = {}

    def tensor(self, name: str, shape: tuple[int, ...], data: NDArray[Any] | None = None) -> int:
        """A tensor, constant with data; its number."""
        made = self.schema.TensorT()
        made.name, made.shape = name, np.array(shape, np.int32)
        made.type = INT32 if data is not None and data.dtype == np.int32 else FLOAT32
        made.buffer = 0
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.ascontiguousarray(data).ravel().view(np.uint8)
            self.model.buffers.append(buffer)
            made.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def node(self, code: int, inputs: list[int], out: int, options: tuple[str, Any] | None) -> None:
        """An operator of the graph."""
        codes = [known.builtinCode for known in self.model.operatorCodes]
        if code not in codes:
            known = self.schema.OperatorCodeT()
            known.builtinCode = known.deprecatedBuiltinCode = code
            known.version = 1
            self.model.operatorCodes.append(known)
            codes.append(code)
        made = self.schema.OperatorT()
        made.opcodeIndex = codes.index(code)
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([out], np.int32)
        if options is not None:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options[0])
            made.builtinOptions = options[1]
        self.graph.operators.append(made)
        self.last = out

    def random(self, name: str, shape: tuple[int, ...], scale: float) -> int:
        """A constant of normal numbers; channels differ in size as trained ones do."""
        values = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        self.weights[name] = values
        return self.tensor(name, shape, values)

    def conv(
        self, name: str, channels: int, kernel: int, stride: int = 1, same: bool = True
    ) -> int:
        """CONV_2D with bias and ReLU."""
        n, h, w, c = (int(dim) for dim in self.graph.tensors[self.last].shape)
        h, w = _out(h, kernel, stride, same), _out(w, kernel, stride, same)
        weights = self.random(name, (channels, kernel, kernel, c), (2 / (kernel**2 * c)) ** 0.5)
        bias = self.random(f"{name}/bias", (channels,), 0.1)
        options = self.schema.Conv2DOptionsT()
        options.padding, options.fusedActivationFunction = (0 if same else 1), 1
        options.strideH = options.strideW = stride
        options.dilationHFactor = options.dilationWFactor = 1
        out = self.tensor(f"{name}/out", (n, h, w, channels))
        self.node(3, [self.last, weights, bias], out, ("Conv2DOptions", options))
        return out

    def depthwise(self, name: str, kernel: int, stride: int = 1) -> int:
        """DEPTHWISE_CONV_2D with bias and ReLU, multiplier 1, padding SAME."""
        n, h, w, c = (int(dim) for dim in self.graph.tensors[self.last].shape)
        weights = self.random(name, (1, kernel, kernel, c), 1.5 / kernel)
        bias = self.random(f"{name}/bias", (c,), 0.1)
        options = self.schema.DepthwiseConv2DOptionsT()
        options.padding, options.fusedActivationFunction, options.depthMultiplier = 0, 1, 1
        options.strideH = options.strideW = stride
        options.dilationHFactor = options.dilationWFactor = 1
        out = self.tensor(
            f"{name}/out", (n, _out(h, kernel, stride, True), _out(w, kernel, stride, True), c)
        )
        self.node(4, [self.last, weights, bias], out, ("DepthwiseConv2DOptions", options))
        return out

    def dense(self, name: str, channels: int) -> int:
        """FULLY_CONNECTED with bias, on all but the first dimension."""
        shape = [int(dim) for dim in self.graph.tensors[self.last].shape]
        columns = int(np.prod(shape[1:]))
        weights = self.random(name, (channels, columns), columns**-0.5)
        bias = self.random(f"{name}/bias", (channels,), 0.1)
        options = self.schema.FullyConnectedOptionsT()
        out = self.tensor(f"{name}/out", (shape[0], channels))
        self.node(9, [self.last, weights, bias], out, ("FullyConnectedOptions", options))
        return out

    def save(self, path: Path) -> Path:
        """Write the file as the schema's code does, without anything of Penstock."""
        import flatbuffers

        self.graph.outputs = [self.last]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path


def _out(size: int, kernel: int, stride: int, same: bool) -> int:
    return -(-size // stride) if same else (size - kernel) // stride + 1


def small_cnn(seed: int = 0) -> ModelMaker:
    """Convolution, depthwise, pointwise, dense: 12 x 12 x 3 to 4 scores."""
    maker = ModelMaker((1, SIDE, SIDE, 3), seed)
    maker.conv("stem", 16, 3, stride=2)
    maker.depthwise("depthwise", 3, stride=2)
    maker.conv("pointwise", 64, 1)
    maker.dense("scores", CLASSES)
    return maker
