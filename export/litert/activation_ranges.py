"""Ranges of a TFLite model's activations on calibration data, in memory that does not grow.

AI Edge Quantizer's own calibration takes a moving average of each sample's least and greatest
value, so that rare large values are clipped, whichever they are. Here a histogram is kept of each
tensor, and the range chosen from all that was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from penstock.export.dataset import Dataset
from penstock.export.litert.flatbuffer_model import text
from penstock.export.litert.tensor_tap import TensorTap
from penstock.loaders.tensor_graph import TensorGraph
from penstock.quant.observers import (
    Observer,
    ValueRange,
    entropy_range,
    minmax_range,
    percentile_range,
)

FLOAT32 = 0
METHODS: Mapping[str, Callable[[Observer, int], ValueRange]] = {
    "minmax": lambda seen, bits: minmax_range(seen.histogram),
    "percentile": lambda seen, bits: percentile_range(seen.histogram),
    "entropy": lambda seen, bits: entropy_range(seen.histogram, 2**bits),
}


def activation_ranges(
    content: bytes,
    graph: TensorGraph,
    model: Any,
    calibration: Dataset,
    method: str,
    *,
    bits: int = 8,
    limit: int | None = None,
    threads: int = 1,
    on_sample: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[ValueRange, int]]:
    """(range, rank) of every float tensor of the first subgraph that is not constant, by name.

    Args:
        content: the file; graph, model: the same, read.
        method: `minmax`, `percentile` (99.999 % of the values) or `entropy`.
        bits: that activations get: with more of them `entropy` clips less.
        limit: samples at most.
        on_sample: called with (samples done, of how many).

    Raises:
        UsageError: a sample does not fit the model, or makes NaN or infinity; there are none.
        PenstockError: LiteRT fails with a sample.
    """
    main = model.subgraphs[0]
    watched = {
        index: Observer(text(tensor.name))
        for index, tensor in enumerate(main.tensors)
        if tensor.type == FLOAT32 and not _constant(model, tensor)
    }
    made = {int(index) for operator in main.operators or [] for index in operator.outputs}
    made |= {int(index) for index in main.inputs}
    tap = TensorTap(content, graph, threads)
    for sample in tap.samples(calibration, limit, on_sample):
        for index in watched.keys() & made:
            watched[index].observe(tap.tensor(index), sample.name)
    choose = METHODS[method]
    return {
        seen.tensor: (choose(seen, bits), _rank(main.tensors[index]))
        for index, seen in watched.items()
        if seen.histogram.total
    }


def _constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data if tensor.buffer else None
    return data is not None and len(data) > 0


def _rank(tensor: Any) -> int:
    return 0 if tensor.shape is None else len(tensor.shape)
