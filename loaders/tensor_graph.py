"""What an ONNX or TFLite file holds: named inputs and outputs, operations, weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

Dim = int | str | None
"""A size, a name that stands for any size, or None for any size."""

# Bits of a number; 'string' and other formats of the files have no fixed size.
BITS = {
    "float32": 32, "float16": 16, "bfloat16": 16, "float64": 64, "int4": 4, "uint4": 4, "int8": 8,
    "uint8": 8, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64, "uint64": 64,
    "bool": 8, "complex64": 64, "complex128": 128, "float8e4m3fn": 8, "float8e4m3fnuz": 8,
    "float8e5m2": 8, "float8e5m2fnuz": 8, "float8e8m0": 8, "float4e2m1": 4, "int2": 2, "uint2": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Quantization:
    """real = scale * (stored - zero_point).

    Attributes:
        scales: one, or one for each index along `axis`; zero_points: as many.
        axis: of the tensor; None where there is one scale.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int | None = None

    def quantize(self, values: NDArray[Any], dtype: str) -> NDArray[Any]:
        """Real numbers as stored ones: rounded, ties away from zero, and held in range.

        Raises:
            UsageError: NaN stands for no number that could be stored.
        """
        real = np.asarray(values, np.float64)
        if np.isnan(real).any():
            raise UsageError("NaN cannot be quantized")
        scale, zero = self._along(real.ndim)
        steps = real / scale
        steps = np.copysign(np.floor(np.abs(steps) + 0.5), steps) + zero
        limits = np.iinfo(dtype)
        return np.clip(steps, limits.min, limits.max).astype(dtype)

    def dequantize(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Stored numbers as real ones."""
        scale, zero = self._along(values.ndim)
        return ((values.astype(np.float64) - zero) * scale).astype(np.float32)

    def _along(self, ndim: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shape = [1] * ndim
        if self.axis is not None:
            shape[self.axis] = len(self.scales)
        scale, zero = np.array(self.scales), np.array(self.zero_points, np.float64)
        return scale.reshape(shape), zero.reshape(shape)


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output.

    Attributes:
        dtype: NumPy's name of it, or the format's own where NumPy has none ('bfloat16', 'string').
        shape: None where the file does not even say how many dimensions there are.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None
    quantization: Quantization | None = None

    def __str__(self) -> str:
        return f"{self.dtype} {shape_text(self.shape)}"


@dataclass(frozen=True)
class Operation:
    """A node of the graph.

    Attributes:
        name: of the node; where it has none, of what it makes.
        kind: the operator.
        domain: of the operator; '' for the format's own.
    """

    name: str
    kind: str
    domain: str = ""

    @property
    def operator(self) -> str:
        return f"{self.domain}.{self.kind}" if self.domain else self.kind


@dataclass(frozen=True)
class Weight:
    """A constant tensor of the file; `external`: the file beside it that has the numbers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    external: str | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorGraph:
    """A checked file.

    Attributes:
        size: of the file, and of those beside it that it uses.
        format: 'onnx' or 'tflite'.
        version: of the format, for people.
        producer: the tool that wrote it, '' where it does not say.
        operations: of all graphs in the file, in order.
        external: files beside it that hold weights.
        opsets: ONNX: the version of each domain's operators.
        functions: ONNX: (domain, name) of the operators that the file defines itself.
        ports: TFLite: tensor numbers of the inputs, then of the outputs.
    """

    path: Path
    size: int
    format: str
    version: str
    producer: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operations: tuple[Operation, ...]
    weights: tuple[Weight, ...]
    external: tuple[Path, ...] = ()
    opsets: dict[str, int] = field(default_factory=dict)
    functions: frozenset[tuple[str, str]] = frozenset()
    ports: tuple[int, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(weight.elements for weight in self.weights)

    @property
    def operators(self) -> dict[str, int]:
        """How often each operator is used, the most frequent first."""
        counts = Counter(operation.operator for operation in self.operations)
        return dict(counts.most_common())

    def to_dict(self, weights: bool = False) -> dict[str, Any]:
        """For --json."""
        out: dict[str, Any] = {
            "file": self.path,
            "size": self.size,
            "format": self.format,
            "version": self.version,
            "producer": self.producer,
            "inputs": [asdict(spec) for spec in self.inputs],
            "outputs": [asdict(spec) for spec in self.outputs],
            "operators": self.operators,
            "parameters": self.parameters,
            "tensor_count": len(self.weights),
            "external": self.external,
        }
        if weights:
            out["tensors"] = [asdict(weight) for weight in self.weights]
        return out


def shape_text(shape: Iterable[Dim] | None) -> str:
    """'1 x 3 x height x ?', 'scalar', or 'of any shape'."""
    if shape is None:
        return "of any shape"
    return " x ".join("?" if dim is None else str(dim) for dim in shape) or "scalar"


def stored_bytes(dtype: str, shape: Iterable[int]) -> int | None:
    """Of a dense tensor; None where the format has no fixed size."""
    bits = BITS.get(dtype)
    return None if bits is None else (bits * math.prod(shape) + 7) // 8
