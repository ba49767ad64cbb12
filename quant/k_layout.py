"""The bytes of K-quant super-blocks.

Layout: block_q4_K, block_q5_K and block_q6_K in ggml/src/ggml-common.h of llama.cpp, and the
`gguf` package's decoders. A super-block has 256 elements.

    Q4_K   d, dmin (float16), 12 bytes of scales and minimums, 128 of quants            144 bytes
    Q5_K   d, dmin, 12 bytes of scales and minimums, 32 of fifth bits, 128 of quants    176 bytes
    Q6_K   128 bytes of low halves, 64 of upper bits, 16 scales (int8), d               210 bytes
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def pack_q4_k(d: Bytes, dmin: Bytes, scales: Bytes, minimums: Bytes, quants: Bytes) -> Bytes:
    """Super-blocks of Q4_K, (n, 144).

    Args:
        d: float16 bytes, (n, 2).
        dmin: float16 bytes, (n, 2).
        scales: 0 to 63, (n, 8).
        minimums: 0 to 63, (n, 8).
        quants: 0 to 15, (n, 8, 32).
    """
    return np.concatenate([d, dmin, _pack_scales(scales, minimums), _pack_halves(quants)], axis=1)


def pack_q5_k(d: Bytes, dmin: Bytes, scales: Bytes, minimums: Bytes, quants: Bytes) -> Bytes:
    """Super-blocks of Q5_K, (n, 176); as for Q4_K, with quants of 0 to 31."""
    # Byte i has the fifth bit of element i of each of the eight sub-blocks, the first lowest.
    places = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth: Bytes = np.bitwise_or.reduce((quants >> np.uint8(4)) << places, axis=1)
    low = _pack_halves(quants & np.uint8(15))
    return np.concatenate([d, dmin, _pack_scales(scales, minimums), fifth, low], axis=1)


def pack_q6_k(d: Bytes, scales: NDArray[np.int8], quants: Bytes) -> Bytes:
    """Super-blocks of Q6_K, (n, 210).

    Args:
        d: float16 bytes, (n, 2).
        scales: -128 to 127, (n, 16).
        quants: 0 to 63, which stand for -32 to 31, (n, 256).
    """
    n = len(quants)
    # Each half of 128 elements: of two elements 64 apart, one byte of low halves; of four
    # elements 32 apart, one byte of upper bits.
    pairs = (quants & np.uint8(15)).reshape(n, 2, 2, 64)
    low = pairs[:, :, 0] | (pairs[:, :, 1] << np.uint8(4))
    fours = (quants >> np.uint8(4)).reshape(n, 2, 4, 32)
    places = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high: Bytes = np.bitwise_or.reduce(fours << places, axis=2)
    parts = [low.reshape(n, 128), high.reshape(n, 64), scales.view(np.uint8), d]
    return np.concatenate(parts, axis=1)


def _pack_scales(scales: Bytes, minimums: Bytes) -> Bytes:
    """Eight scales and eight minimums of six bits, (n, 12).

    The first four of each have a byte, whose two upper bits are those of the last four; these
    share the last four bytes for their lower halves.
    """
    upper = np.uint8(4)
    first = scales[:, :4] | ((scales[:, 4:] >> upper) << np.uint8(6))
    second = minimums[:, :4] | ((minimums[:, 4:] >> upper) << np.uint8(6))
    third = (scales[:, 4:] & np.uint8(15)) | ((minimums[:, 4:] & np.uint8(15)) << upper)
    return np.concatenate([first, second, third], axis=1)


def _pack_halves(quants: Bytes) -> Bytes:
    """Quants (n, 8, 32) of four bits, (n, 128): of two sub-blocks, the first is the low half."""
    pairs = quants.reshape(len(quants), 4, 2, 32)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << np.uint8(4))).reshape(len(quants), 128)
