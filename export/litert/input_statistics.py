"""Mean and covariance of what flows into each weighted layer of a TFLite model, on real data.

Columns are those of the layer's weights as rows: a convolution's inputs are the patches that its
kernel covers. Memory does not grow with the number of samples: only sums are kept, and samples are
gone through again where the sums of all layers do not fit at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.export.dataset import Dataset
from penstock.export.litert.tensor_tap import TensorTap
from penstock.export.litert.weight_layers import WeightLayer
from penstock.loaders.tensor_graph import TensorGraph

MAX_COLUMNS = 4096  # 128 MiB of sums; wider layers are rounded to nearest
POSITIONS = 4096  # of a sample that a layer's sums are taken over, evenly spread
SUMS_BYTES = 512 << 20  # at once


@dataclass(frozen=True)
class InputStatistics:
    """Of one layer's inputs.

    Attributes:
        mean: (columns,), or (output channels, columns) of a depthwise convolution.
        covariance: (columns, columns), or (output channels, columns, columns).
        count: positions that they are over.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int

    @property
    def moments(self) -> NDArray[np.float64]:
        """Second moments about 0."""
        return self.covariance + self.mean[..., :, None] * self.mean[..., None, :]


def input_statistics(
    content: bytes,
    graph: TensorGraph,
    model: Any,
    layers: Sequence[WeightLayer],
    calibration: Dataset,
    *,
    limit: int | None = None,
    threads: int = 1,
    on_sample: Callable[[int, int], None] | None = None,
) -> dict[str, InputStatistics]:
    """Statistics of the layers of the first subgraph, by name.

    Left out: layers of other subgraphs, transposed and grouped convolutions, those with more than
    4,096 columns, and those whose inputs are not float32.

    Args:
        content: the file; graph, model: the same, read.
        limit: samples to go through, at most.
        on_sample: called with (samples done, of how many).

    Raises:
        UsageError: a sample does not fit the model, or makes NaN or infinity; there are none.
        PenstockError: LiteRT fails with a sample.
    """
    sums = {layer.name: made for layer in layers if (made := _sums(model, layer)) is not None}
    groups = list(_groups(sums))
    tap = TensorTap(content, graph, threads)
    for number, group in enumerate(groups):

        def tell(done: int, total: int, number: int = number) -> None:
            if on_sample is not None:
                on_sample(number * total + done, len(groups) * total)

        for sample in tap.samples(calibration, limit, tell):
            for name in group:
                sums[name].add(tap.tensor(sums[name].layer.data), sample.name)
    return {name: one.statistics() for name, one in sums.items()}


@dataclass
class _Sums:
    """Running sums of a layer: (groups, columns) and (groups, columns, columns)."""

    layer: WeightLayer
    window: _Window | None
    groups: int
    columns: int
    repeats: int
    first: NDArray[np.float64] | None = None
    second: NDArray[np.float64] | None = None
    count: int = 0

    @property
    def nbytes(self) -> int:
        return 8 * self.groups * self.columns * (self.columns + 1)

    def add(self, data: NDArray[Any], sample: str) -> None:
        if not np.isfinite(data).all():
            raise UsageError(
                f"{sample}: the model makes NaN or infinity of it, at the input of "
                f"{self.layer.name}; look at the sample and its preprocessing"
            )
        patches = self._patches(data)  # (positions, groups, columns)
        if self.first is None or self.second is None:
            self.first = np.zeros((self.groups, self.columns))
            self.second = np.zeros((self.groups, self.columns, self.columns))
        by_group = np.ascontiguousarray(patches.transpose(1, 0, 2))
        self.first += by_group.sum(axis=1, dtype=np.float64)
        self.second += by_group.transpose(0, 2, 1) @ by_group
        self.count += len(patches)

    def _patches(self, data: NDArray[Any]) -> NDArray[np.float32]:
        if self.window is None:
            rows = data.reshape(-1, 1, self.columns)
            return rows[:: -(-len(rows) // POSITIONS)]
        return self.window.patches(data).reshape(-1, self.groups, self.columns)

    def statistics(self) -> InputStatistics:
        assert self.first is not None and self.second is not None
        mean = self.first / self.count
        covariance = self.second / self.count - mean[:, :, None] * mean[:, None, :]
        if self.layer.operator != "DEPTHWISE_CONV_2D":
            return InputStatistics(mean[0], covariance[0], self.count)
        return InputStatistics(
            np.repeat(mean, self.repeats, axis=0),
            np.repeat(covariance, self.repeats, axis=0),
            self.count,
        )


@dataclass(frozen=True)
class _Window:
    """A convolution's kernel: sizes, strides, dilations as (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    same: bool
    depthwise: bool

    def patches(self, data: NDArray[Any]) -> NDArray[np.float32]:
        """Of NHWC data: (batch, rows, columns, ...), channels last or, depthwise, first."""
        span = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        if self.same:
            pads = [_same_padding(data.shape[1 + i], span[i], self.stride[i]) for i in (0, 1)]
            data = np.pad(data, ((0, 0), *pads, (0, 0)))
        view = np.lib.stride_tricks.sliding_window_view(data, (span[0], span[1]), axis=(1, 2))
        view = view[:, :: self.stride[0], :: self.stride[1]]
        view = view[..., :: self.dilation[0], :: self.dilation[1]]  # N, H, W, channel, ky, kx
        step = max(1, int(np.ceil(np.sqrt(view.shape[1] * view.shape[2] / POSITIONS))))
        view = view[:, ::step, ::step]
        return view if self.depthwise else view.transpose(0, 1, 2, 4, 5, 3)


def _same_padding(size: int, span: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: the output has ceil(size / stride) positions, the odd zero at the end."""
    total = max((-(-size // stride) - 1) * stride + span - size, 0)
    return total // 2, total - total // 2


def _sums(model: Any, layer: WeightLayer) -> _Sums | None:
    """Empty sums of a layer; None where its inputs are not gathered."""
    graph = model.subgraphs[layer.subgraph]
    data = graph.tensors[layer.data]
    if layer.subgraph != 0 or data.type != 0 or layer.operator == "TRANSPOSE_CONV":
        return None
    columns = layer.parameters // layer.channels
    if columns > MAX_COLUMNS:
        return None
    if layer.operator == "FULLY_CONNECTED":
        return _Sums(layer, None, 1, columns, 1)
    if data.shape is None or len(data.shape) != 4:
        return None
    channels = int(data.shape[3])
    depthwise = layer.operator == "DEPTHWISE_CONV_2D"
    if layer.channels % channels if depthwise else layer.shape[3] != channels:
        return None
    options = graph.operators[layer.node].builtinOptions
    window = _Window(
        kernel=(layer.shape[1], layer.shape[2]),
        stride=(max(options.strideH, 1), max(options.strideW, 1)),
        dilation=(max(options.dilationHFactor, 1), max(options.dilationWFactor, 1)),
        same=options.padding == 0,
        depthwise=depthwise,
    )
    if depthwise:
        return _Sums(layer, window, channels, columns, layer.channels // channels)
    return _Sums(layer, window, 1, columns, 1)


def _groups(sums: Mapping[str, _Sums]) -> Iterator[list[str]]:
    """Names of layers whose sums are taken in one pass."""
    group: list[str] = []
    held = 0
    for name, one in sums.items():
        if group and held + one.nbytes > SUMS_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += one.nbytes
    if group:
        yield group
