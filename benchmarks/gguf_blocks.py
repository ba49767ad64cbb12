"""Random blocks of ggml's number formats: valid bytes whose values have zero mean.

Weights come from one pool of blocks a format, some megabytes, read round and round from a start
that differs for each tensor. The pool's length is a prime, so no two rows, matrices or experts that
are read from it are equal. A pool is drawn once and given each tensor's scale, which is quick: only
the scale fields change.

Plain random bytes would not do: a Q4_0 code is 0..15 less 8, on average -0.5. So scales have a
random sign, and Q4_K's minimum is the middle of its codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
SMALL_POOL, LARGE_POOL = 99_991, 24_989  # blocks; primes


@dataclass(frozen=True)
class Format:
    """A number format: `block` elements take `block_bytes` bytes."""

    name: str
    block: int
    block_bytes: int

    @property
    def kind(self) -> GGMLQuantizationType:
        return GGMLQuantizationType[self.name]

    def row_bytes(self, columns: int) -> int:
        if columns % self.block:
            raise ValueError(f"{columns} columns are not whole blocks of {self.name}")
        return columns // self.block * self.block_bytes


FORMATS = {
    f.name: f
    for f in (
        Format("F32", 1, 4),
        Format("F16", 32, 64),  # ggml has no blocks here; this is what the pool is counted in
        Format("Q8_0", 32, 34),
        Format("Q4_0", 32, 18),
        Format("MXFP4", 32, 17),
        Format("Q4_K", 256, 144),
        Format("Q6_K", 256, 210),
    )
}


def fitting(name: str, columns: int) -> Format:
    """The format, or Q8_0 where its blocks do not divide a row, as llama.cpp's tool falls back."""
    form = FORMATS[name]
    return form if columns % form.block == 0 else FORMATS["Q8_0"]


class Pool:
    """Blocks of one format with values of deviation 1, given other scales on request."""

    def __init__(self, form: Format, seed: int) -> None:
        self.form = form
        rng = np.random.Generator(np.random.SFC64([seed, form.block_bytes]))
        count = SMALL_POOL if form.block == 32 else LARGE_POOL
        self._at, self._blocks = -1.0, np.empty(0, np.uint8)
        if form.name == "F16":
            self._values = rng.standard_normal((count, form.block), np.float32)
            return
        raw = np.frombuffer(rng.bytes(count * form.block_bytes), np.uint8)
        self._raw = raw.reshape(count, form.block_bytes).copy()
        # Scales vary by a quarter either way.
        self._factor = rng.uniform(0.75, 1.25, count).astype(np.float32)
        if form.name == "Q4_K":
            self._raw[:, 4:16] = _q4_k_scales(rng, count)
        else:
            self._factor *= rng.choice(np.array([-1, 1], np.float32), count)
        self._pick = rng.random(count, np.float32)
        self._unit = 1.0
        blocks = self._filled(2.0**-8)[:2048]
        self._unit = float(dequantize(blocks, form.kind).std()) * 2.0**8

    def scaled(self, deviation: float) -> Bytes:
        """The pool's blocks (blocks, block bytes), their values with this deviation."""
        if deviation != self._at:
            self._at, self._blocks = deviation, self._filled(deviation)
        return self._blocks

    def _filled(self, deviation: float) -> Bytes:
        form = self.form
        if form.name == "F16":
            halves = (self._values * np.float32(deviation)).astype(np.float16)
            return halves.view(np.uint8).reshape(len(halves), -1)
        out = self._raw.copy()
        if form.name == "MXFP4":
            out[:, 0] = self._exponents(deviation / self._unit)
            return out
        scale = (self._factor * np.float32(deviation / self._unit)).astype(np.float16)
        if form.name == "Q6_K":
            out[:, -2:] = scale[:, None].view(np.uint8)
            return out
        out[:, :2] = scale[:, None].view(np.uint8)
        if form.name == "Q4_K":
            # Minima equal the scales, so this makes every code q count as q - 7.5.
            least = (scale.astype(np.float32) * np.float32(7.5)).astype(np.float16)
            out[:, 2:4] = least[:, None].view(np.uint8)
        return out

    def _exponents(self, scale: float) -> Bytes:
        """E8M0 exponents: the power of two below the scale, and now and then the one above it."""
        low = int(np.floor(np.log2(scale)))
        above = (scale**2 / 4.0**low - 1) / 3  # share that makes the mean square right
        exponents: Bytes = (128 + low + (self._pick < above)).astype(np.uint8)
        return exponents


def _q4_k_scales(rng: np.random.Generator, count: int) -> Bytes:
    """12 bytes a block: eight 6-bit scales of 20..44, and eight minima equal to them."""
    s = rng.integers(20, 45, (count, 8), np.uint8)
    low, high = s[:, :4], s[:, 4:]
    first = low | (high >> 4 << 6)
    last = (high & 15) | (high << 4)
    return np.concatenate([first, first, last], axis=1)


def read_pool(pool: Bytes, start: int, out: Bytes) -> None:
    """Fill `out` (blocks, block bytes) from block `start` on, round and round."""
    done = 0
    while done < len(out):
        at = (start + done) % len(pool)
        step = min(len(out) - done, len(pool) - at)
        out[done : done + step] = pool[at : at + step]
        done += step


def constant_blocks(form: Format, values: Floats) -> Bytes:
    """One block for each value, all of whose elements are it (nearly: scales are halves)."""
    out = np.zeros((len(values), form.block_bytes), np.uint8)
    if form.name == "F16":
        out.view(np.float16)[:] = values[:, None]
    elif form.name == "Q8_0":
        out[:, :2] = (values[:, None] / 127).astype(np.float16).view(np.uint8)
        out[:, 2:] = 127
    elif form.name == "Q4_0":
        out[:, :2] = (values[:, None] / -8).astype(np.float16).view(np.uint8)  # code 0 is -8
    elif values.any():
        raise ValueError(f"no constant blocks in {form.name}; use F16, Q8_0 or Q4_0 there")
    return out
