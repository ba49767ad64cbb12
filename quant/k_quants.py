"""K-quants: rows as GGUF's Q4_K, Q5_K and Q6_K, optionally with importance weights.

    Q4_K   4.5 bits an element     super-blocks of 256 elements: 144 bytes
    Q5_K   5.5 bits                176 bytes
    Q6_K   6.5625 bits             210 bytes

The encoders seek the least sum of weight * (decoded - value)^2; without weights all weigh 1. With
the mean squares of a layer's inputs as the weights of columns (an importance matrix), that is
about the squared error of the layer's outputs. Blocks are encoded on their own, so rows can be
encoded in any order and number.

Over a tensor the errors are some per cent below those of llama.cpp's own quantizers, with an
importance matrix more; of a single super-block they can be above.

Temporary memory does not grow with the tensor: at most 8 MiB for a batch of 256 super-blocks,
beside the result and, where `values` or `weights` are not contiguous, a copy of these. Layout of
the bytes: k_layout.py. Decode with `blocks.decode_rows`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.quant import k_affine, k_symmetric
from penstock.quant.blocks import F16_MAX, BlockFormat
from penstock.quant.k_layout import pack_q4_k, pack_q5_k, pack_q6_k
from penstock.quant.super_blocks import SUPER_BLOCK, Batch, Floats, batches

Bytes = NDArray[np.uint8]

Q4_K = BlockFormat("Q4_K", 12, SUPER_BLOCK, 144)
Q5_K = BlockFormat("Q5_K", 13, SUPER_BLOCK, 176)
Q6_K = BlockFormat("Q6_K", 14, SUPER_BLOCK, 210)
K_FORMATS: dict[str, BlockFormat] = {form.name: form for form in (Q4_K, Q5_K, Q6_K)}
# What any mix of signs can be encoded up to: the largest dmin * minimum, or d * scale * quant.
AFFINE_LIMIT = F16_MAX * k_affine.HIGHEST
SYMMETRIC_LIMIT = F16_MAX * k_symmetric.HIGHEST_SCALE * k_symmetric.HIGHEST_QUANT


def encode_q4_k(values: Floats, weights: Floats | None = None) -> Bytes:
    """Rows as Q4_K.

    Args:
        values: (rows, columns); the columns are a multiple of 256.
        weights: how much an error counts, at least 0: (columns,) or (rows, columns).

    Returns:
        Bytes (rows, bytes of a row).

    Raises:
        FormatError: a value is NaN, infinite or above 4.1e6; the row is named.
        UsageError: the shapes do not fit, or a weight is NaN, infinite or negative.
    """
    return _encode(values, weights, Q4_K)


def encode_q5_k(values: Floats, weights: Floats | None = None) -> Bytes:
    """Rows as Q5_K; otherwise as `encode_q4_k`."""
    return _encode(values, weights, Q5_K)


def encode_q6_k(values: Floats, weights: Floats | None = None) -> Bytes:
    """Rows as Q6_K; otherwise as `encode_q4_k`, for values up to 2.5e8."""
    return _encode(values, weights, Q6_K)


def _encode(values: Floats, weights: Floats | None, form: BlockFormat) -> Bytes:
    if values.ndim != 2:
        raise UsageError(f"values have shape {values.shape}; expected (rows, columns)")
    rows, columns = values.shape
    row_bytes = form.row_bytes(columns)
    if weights is not None and weights.shape not in ((columns,), (rows, columns)):
        raise UsageError(
            f"importance weights have shape {weights.shape}; expected ({columns},), one a "
            f"column, or ({rows}, {columns}), one an element"
        )
    symmetric = form is Q6_K
    sub_blocks = k_symmetric.SUB_BLOCKS if symmetric else k_affine.SUB_BLOCKS
    limit = SYMMETRIC_LIMIT if symmetric else AFFINE_LIMIT
    encoded = np.empty((rows * columns // SUPER_BLOCK, form.block_bytes), np.uint8)
    for place, batch in batches(values, weights, form, sub_blocks, limit):
        blocks = _symmetric_bytes(batch) if symmetric else _affine_bytes(batch, form)
        encoded[place] = blocks[: place.stop - place.start]
    return encoded.reshape(rows, row_bytes)


def _affine_bytes(batch: Batch, form: BlockFormat) -> Bytes:
    parts, quants = k_affine.AffineSearch(batch, 15 if form is Q4_K else 31).run()
    pack = pack_q4_k if form is Q4_K else pack_q5_k
    return pack(
        batch.half_bytes(parts.d),
        batch.half_bytes(parts.dmin),
        batch.by_super_block(parts.scales).T.astype(np.uint8),
        batch.by_super_block(parts.minimums).T.astype(np.uint8),
        batch.turned_back(quants).astype(np.uint8),
    )


def _symmetric_bytes(batch: Batch) -> Bytes:
    parts, quants = k_symmetric.SymmetricSearch(batch).run()
    shifted = batch.turned_back(quants) - np.float32(k_symmetric.LOWEST_QUANT)
    return pack_q6_k(
        batch.half_bytes(parts.d),
        np.ascontiguousarray(batch.by_super_block(parts.scales).T.astype(np.int8)),
        shifted.astype(np.uint8).reshape(-1, SUPER_BLOCK),
    )
