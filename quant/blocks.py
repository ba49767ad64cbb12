"""Weights as rows of ggml's block formats, through the `gguf` package's reference code.

    F16    2 bytes an element
    Q8_0   blocks of 32: an F16 scale and 32 int8        34 bytes, 8.5 bits an element
    Q4_0   blocks of 32: an F16 scale and 32 4-bit       18 bytes, 4.5 bits an element

A row is one neuron's up (gate, down) weights; rows are encoded on their own, so they can be
written in any order. Layout of the blocks: ggml/src/ggml-common.h in llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from penstock.errors import FormatError, UsageError


@dataclass(frozen=True)
class BlockFormat:
    """A number format: `block` elements take `block_bytes` bytes."""

    name: str
    ggml_type: int
    block: int
    block_bytes: int

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` elements. Raises UsageError when blocks do not divide it."""
        if width < 1 or width % self.block:
            raise UsageError(
                f"a row of {width} elements cannot be {self.name}: its blocks are {self.block} "
                f"elements. Use F16."
            )
        return width // self.block * self.block_bytes


F32 = BlockFormat("F32", 0, 1, 4)
FORMATS: dict[str, BlockFormat] = {
    "F16": BlockFormat("F16", 1, 1, 2),
    "Q8_0": BlockFormat("Q8_0", 8, 32, 34),
    "Q4_0": BlockFormat("Q4_0", 2, 32, 18),
}
TINY = np.float32(1e-30)
F16_MAX = 65504.0


def block_format(name: str) -> BlockFormat:
    """A format by its name, `f16` or `F16`. Raises UsageError for another."""
    found = FORMATS.get(name.upper())
    if found is None:
        raise UsageError(f"number format {name!r} is not known; expected {', '.join(FORMATS)}")
    return found


def encode_rows(rows: NDArray[np.float32], form: BlockFormat) -> NDArray[np.uint8]:
    """Rows (n, width) as bytes (n, row_bytes).

    Raises:
        FormatError: a value is NaN or infinite, or too large for the format's half-precision part.
        UsageError: the width is not a multiple of the format's block.
    """
    form.row_bytes(rows.shape[-1])
    check_range(rows, form)
    data = np.ascontiguousarray(rows, np.float32)
    if form.block > 1:
        # The reciprocal of a scale below the smallest normal overflows in the encoder; the F16
        # scale of such a block is zero anyway.
        data = np.where(np.abs(data) < TINY, np.float32(0), data)
    encoded = quantize(data, GGMLQuantizationType(form.ggml_type))
    return np.ascontiguousarray(encoded).view(np.uint8).reshape(len(rows), -1)


def decode_rows(data: NDArray[np.uint8], form: BlockFormat) -> NDArray[np.float32]:
    """Bytes (n, row_bytes) as rows (n, width)."""
    if data.shape[-1] % form.block_bytes:
        raise FormatError(
            f"a row of {data.shape[-1]} bytes is not {form.name}: expected a multiple of "
            f"{form.block_bytes} bytes"
        )
    raw = np.ascontiguousarray(data)
    if form.block == 1:
        return raw.view(np.float16 if form.name == "F16" else np.float32).astype(np.float32)
    rows: NDArray[np.float32] = dequantize(raw, GGMLQuantizationType(form.ggml_type))
    return rows


def check_range(rows: NDArray[np.float32], form: BlockFormat) -> None:
    """Refuse what the format would silently turn into infinity or NaN."""
    largest = float(np.max(np.abs(rows), initial=0.0))
    # A block's scale is an F16: the largest value over 127 (Q8_0) or over 8 (Q4_0).
    limit = {"F16": 1.0, "Q8_0": 127.0, "Q4_0": 8.0}.get(form.name, np.inf) * F16_MAX
    if not largest <= limit:
        advice = "use Q8_0" if form.name != "Q8_0" and np.isfinite(largest) else "check its source"
        raise FormatError(
            f"a weight is {largest:g}; {form.name} holds finite values up to {limit:g}; {advice}"
        )
