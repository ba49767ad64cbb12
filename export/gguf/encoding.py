"""Tensors to bytes, slab by slab, on all cores; each slab is decoded again to know its error."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penstock.export.gguf.tensor_types import TYPES, decode, encode
from penstock.export.gguf.weights import Weights, WeightTensor
from penstock.quant.blocks import BlockFormat

SLAB_ELEMENTS = 1 << 20  # 4 MiB of float32; some times that in temporary arrays, on each core
Bytes = NDArray[np.uint8]


@dataclass
class ErrorSums:
    """Squares over the elements of a tensor; weighted ones where there is importance."""

    noise: float = 0.0
    signal: float = 0.0
    weighted_noise: float = 0.0
    weighted_signal: float = 0.0

    def add(self, other: ErrorSums) -> None:
        self.noise += other.noise
        self.signal += other.signal
        self.weighted_noise += other.weighted_noise
        self.weighted_signal += other.weighted_signal

    @property
    def relative_rmse(self) -> float:
        return math.sqrt(_ratio(self.noise, self.signal))

    @property
    def relative_noise(self) -> float:
        """Power of the weighted error over that of the weighted values."""
        return _ratio(self.weighted_noise, self.weighted_signal)


@dataclass(frozen=True)
class EncodedSlab:
    """Rows as bytes (rows, row_bytes), and their error; a tensor's first rows come first."""

    data: Bytes
    errors: ErrorSums = field(default_factory=ErrorSums)


def encoded_slabs(
    weights: Weights,
    tensor: WeightTensor,
    type_name: str,
    importance: NDArray[np.float32] | None,
    pool: ThreadPoolExecutor,
    threads: int,
) -> Iterator[EncodedSlab]:
    """A tensor in a format, in order. One that has it already is copied as it is.

    Args:
        importance: (matrices, columns).

    Raises:
        FormatError: a value that the format cannot hold; the row is named.
    """
    if tensor.type_name == type_name:
        for first, count in slabs(tensor):
            yield EncodedSlab(weights.raw(tensor, first, count))
        return
    form = TYPES[type_name]
    waiting: deque[Future[EncodedSlab]] = deque()
    for first, count in slabs(tensor):
        rows = weights.floats(tensor, first, count)
        heavy = row_weights(tensor, importance, first)
        waiting.append(pool.submit(encode_slab, rows, form, heavy))
        if len(waiting) > threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def encode_slab(
    rows: NDArray[np.float32], form: BlockFormat, weights: NDArray[np.float32] | None
) -> EncodedSlab:
    """Rows in a format, and what they decode to held against them."""
    data = encode(rows, form, weights)
    difference = decode(data, form.ggml_type).reshape(rows.shape) - rows
    errors = ErrorSums(_squares(difference), _squares(rows))
    if weights is None:
        errors.weighted_noise, errors.weighted_signal = errors.noise, errors.signal
    else:
        root = np.sqrt(weights)
        errors.weighted_noise = _squares(difference * root)
        errors.weighted_signal = _squares(rows * root)
    return EncodedSlab(data, errors)


def slabs(tensor: WeightTensor) -> Iterator[tuple[int, int]]:
    """(first row, rows); no slab reaches from one expert's matrix into the next."""
    step = max(1, SLAB_ELEMENTS // tensor.columns)
    height = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    for matrix in range(0, tensor.rows, height):
        for first in range(matrix, matrix + height, step):
            yield first, min(step, matrix + height - first)


def row_weights(
    tensor: WeightTensor, importance: NDArray[np.float32] | None, first: int
) -> NDArray[np.float32] | None:
    """(columns,) for the rows of one matrix, of which `first` is one."""
    if importance is None:
        return None
    height = tensor.rows // len(importance)
    weights: NDArray[np.float32] = importance[first // height]
    return weights


def _squares(values: NDArray[np.float32]) -> float:
    flat = values.astype(np.float64).ravel()
    return float(flat @ flat)


def _ratio(noise: float, signal: float) -> float:
    if noise == 0:
        return 0.0
    return noise / signal if signal else 1.0
