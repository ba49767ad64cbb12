"""The bytes of K-quants: every bit is where the `gguf` package's decoders look for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.quant.blocks import decode_rows
from penstock.quant.k_layout import pack_q4_k, pack_q5_k, pack_q6_k
from penstock.quant.k_quants import K_FORMATS


def half_bytes(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K"])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_affine_blocks_are_decoded_from_their_parts(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = 16 if name == "Q4_K" else 32
    d, dmin = rng.integers(1, 2048, size=(2, 3)) / 1024
    scales, minimums = rng.integers(0, 64, size=(2, 3, 8)).astype(np.uint8)
    quants = rng.integers(0, levels, size=(3, 8, 32)).astype(np.uint8)
    pack = pack_q4_k if name == "Q4_K" else pack_q5_k
    blocks = pack(half_bytes(d), half_bytes(dmin), scales, minimums, quants)
    assert blocks.shape == (3, K_FORMATS[name].block_bytes)
    expected = (d[:, None] * scales)[..., None] * quants - (dmin[:, None] * minimums)[..., None]
    assert (decode_rows(blocks, K_FORMATS[name]) == expected.reshape(3, 256)).all()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_symmetric_blocks_are_decoded_from_their_parts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = rng.integers(-2048, 2048, size=3) / 1024
    scales = rng.integers(-128, 128, size=(3, 16)).astype(np.int8)
    quants = rng.integers(0, 64, size=(3, 256)).astype(np.uint8)
    blocks = pack_q6_k(half_bytes(d), scales, quants)
    assert blocks.shape == (3, 210)
    steps = np.repeat(d[:, None] * scales, 16, axis=1)
    assert (decode_rows(blocks, K_FORMATS["Q6_K"]) == steps * (quants.astype(int) - 32)).all()
