"""How many bytes a .psplat file's parts may have."""

from __future__ import annotations

import numpy as np
import pytest

from penstock import _native
from penstock.loaders.splats.psplat_limits import codebook_bytes, group_bytes
from penstock.quant.entropy import ChannelCoding, coding_rows


def test_a_group_has_its_states_and_a_byte_a_splat() -> None:
    assert group_bytes(1, 0) == (16, 32 + 64)
    assert group_bytes(16, 3) == (16, 32 + 16 * (64 + 3 * 8))
    assert group_bytes(1000, 2) == (1000, 32 + 1000 * (64 + 2 * 8))


def test_a_codebook_section_has_its_states_and_eight_numbers_a_byte() -> None:
    assert codebook_bytes(0) == (0, 0)
    assert codebook_bytes(1) == (16, 32 + 8)
    assert codebook_bytes(1000) == (125, 32 + 8000)


@pytest.mark.parametrize("count", [1, 2, 700])
def test_the_coder_keeps_to_them(count: int) -> None:
    """Numbers that cost nothing, and those that cost most: three rare symbols and raw bits."""
    none = np.zeros(0, np.uint8)
    least, most = group_bytes(count, 1)
    coder = _native.SplatCoder(1, 0, 7, None, coding_rows([(ChannelCoding(), 1)]))
    cheap = coder.encode(np.zeros((count, 3), np.uint32), none, [np.zeros(count, np.uint16)])
    assert len(cheap) >= least
    rng = np.random.default_rng(0)
    codes = np.sort(rng.integers(0, 1 << 63, count, dtype=np.uint64))
    cells = np.zeros((count, 3), np.uint32)
    for bit in range(63):
        own = (codes >> np.uint64(bit) & np.uint64(1)).astype(np.uint32)
        cells[:, bit % 3] |= own << np.uint32(bit // 3)
    coder = _native.SplatCoder(21, 21, 4, None, coding_rows([(ChannelCoding(raw=4), 1 << 16)]))
    dear = coder.encode(cells, none, [rng.integers(0, 1 << 16, count).astype(np.uint16)])
    assert least <= len(dear) <= most
