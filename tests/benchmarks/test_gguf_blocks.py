"""Random blocks of ggml's formats are valid numbers of zero mean and of the deviation asked for."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.quants import dequantize
from numpy.typing import NDArray

from benchmarks.gguf_blocks import FORMATS, Pool, constant_blocks, read_pool

QUANTIZED = [name for name in FORMATS if name != "F32"]


def values(name: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    if name == "F16":
        return blocks.view(np.float16).astype(np.float32)
    out: NDArray[np.float32] = dequantize(blocks, FORMATS[name].kind)
    return out


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("deviation", [1.0, 0.011])
def test_random_blocks_have_zero_mean(name: str, deviation: float) -> None:
    found = values(name, Pool(FORMATS[name], 0).scaled(deviation))
    assert np.isfinite(found).all()
    assert abs(found.mean()) < 0.003 * deviation
    assert found.std() == pytest.approx(deviation, rel=0.02)
    # Every place of a block has, not only all of them together.
    assert np.abs(found.mean(axis=0)).max() < 0.04 * deviation


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0"])
def test_constant_blocks(name: str) -> None:
    wanted = np.array([0.03125, -0.7, 0.0], np.float32)
    found = values(name, constant_blocks(FORMATS[name], wanted))
    assert np.allclose(found, wanted[:, None], rtol=1e-3)


def test_a_pool_is_read_round_and_round() -> None:
    pool = np.arange(7, dtype=np.uint8)[:, None]
    out = np.empty((20, 1), np.uint8)
    read_pool(pool, 12, out)
    assert out[:, 0].tolist() == [(12 + i) % 7 for i in range(20)]
