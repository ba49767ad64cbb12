"""Formats of tensors for a target size: least error for the bytes, from a sample of each tensor.

The cost of a format is the power of its error in a tensor over that of the tensor, weighted by the
importance of columns where there is one: then it is about the relative error of what the matrix
puts out. The output matrix makes the logits, and the embedding begins the residual stream; each of
the two branches of each of L blocks adds its share to that stream: so errors inside blocks count
1/(2 L). This is a model of what errors do, not a measurement; the report says what the whole costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.export.bit_allocation import Option, best_mix
from penstock.export.gguf.encoding import ErrorSums, encode_slab, row_weights
from penstock.export.gguf.importance import Importance
from penstock.export.gguf.tensor_types import TYPES, fitting
from penstock.export.gguf.weights import Weights, WeightTensor
from penstock.export.report import Progress, ProgressCallback
from penstock.quant.blocks import BlockFormat

CANDIDATES = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16")
BLOCK = "blk."
SAMPLE_ELEMENTS = 1 << 17  # of a tensor: rows spread evenly
SAMPLE_RUNS = 8  # neighbouring rows are read together, in so many places


def choose_types(
    weights: Weights,
    tensors: Mapping[str, WeightTensor],
    target_bytes: int,
    fixed_bytes: int,
    importance: Importance | None,
    threads: int,
    progress: ProgressCallback | None = None,
) -> dict[str, str]:
    """A format for each of `tensors`, so that the file has at most `target_bytes`.

    Args:
        fixed_bytes: of the file, beside these tensors.

    Raises:
        UsageError: even the smallest formats make a larger file; its size is named.
    """

    least = fixed_bytes + sum(
        min(aligned_bytes(tensor, form, weights.alignment) for form in _formats(tensor))
        for tensor in tensors.values()
    )
    if target_bytes < least:
        raise UsageError(
            f"{target_bytes} bytes cannot be met: the smallest file of this model has {least}"
        )

    blocks = len({name.split(".")[1] for name in tensors if name.startswith(BLOCK)})

    def options_of(tensor: WeightTensor) -> list[Option]:
        share = 1 / (2 * blocks) if tensor.name.startswith(BLOCK) else 1.0
        columns = None if importance is None else importance.of(tensor)
        return [
            Option(form.name, aligned_bytes(tensor, form, weights.alignment), share * noise)
            for form, noise in _noises(weights, tensor, columns)
        ]

    options: dict[str, list[Option]] = {}
    with ThreadPoolExecutor(threads, "penstock-encode") as pool:
        for name, found in zip(tensors, pool.map(options_of, tensors.values()), strict=True):
            options[name] = found
            if progress is not None:
                progress(Progress("errors of formats", len(options), len(tensors), "tensors"))
    mix = best_mix(options, target_bytes - fixed_bytes)
    return {name: option.precision for name, option in mix.items()}


def aligned_bytes(tensor: WeightTensor, form: BlockFormat, alignment: int) -> int:
    """What a tensor takes in a file."""
    nbytes = tensor.rows * form.row_bytes(tensor.columns)
    return -(-nbytes // alignment) * alignment


def _formats(tensor: WeightTensor) -> list[BlockFormat]:
    """Those whose blocks divide the rows, the smallest first."""
    names = dict.fromkeys(fitting(name, tensor.columns) for name in CANDIDATES)
    return sorted((TYPES[name] for name in names), key=lambda f: f.row_bytes(tensor.columns))


def _noises(
    weights: Weights, tensor: WeightTensor, columns: NDArray[np.float32] | None
) -> list[tuple[BlockFormat, float]]:
    """Formats, and the relative noise of each; the source's own has none."""
    sums = [(form, ErrorSums()) for form in _formats(tensor)]
    for first, count in _sample(tensor):
        rows = weights.floats(tensor, first, count)
        heavy = row_weights(tensor, columns, first)
        for form, total in sums:
            if form.name != tensor.type_name:
                total.add(encode_slab(rows, form, heavy).errors)
    return [(form, total.relative_noise) for form, total in sums]


def _sample(tensor: WeightTensor) -> list[tuple[int, int]]:
    """(first row, rows) of runs that each lie in one matrix."""
    wanted = max(1, min(tensor.rows, SAMPLE_ELEMENTS // tensor.columns))
    count = max(1, wanted // SAMPLE_RUNS)
    height = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    firsts = np.linspace(0, tensor.rows - count, min(SAMPLE_RUNS, wanted)).astype(int).tolist()
    runs = []
    for first in sorted(set(firsts)):
        end = min(first + count, (first // height + 1) * height)
        runs.append((first, end - first))
    return runs
