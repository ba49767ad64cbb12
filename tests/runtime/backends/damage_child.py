"""Opens damaged copies of a model, each of them the one of a seed; see test_damage.py.

Run as: damage_child.py MODEL SEEDS COPY. Says each seed before it tries it, so that one that ends
the process is known, and at last 'done' with how many copies were refused.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

from penstock.errors import PenstockError
from penstock.loaders.tensor_graph import TensorSpec
from penstock.runtime.backends.open_model import open_model

MAX_ELEMENTS = 1 << 22  # a damaged shape may ask for any number of them


def damaged(data: bytes, seed: int) -> bytes:
    """A copy that is cut short, overwritten, or has some bytes or numbers changed."""
    rng, out = random.Random(seed), bytearray(data)
    way = seed % 5
    if way == 0:
        return bytes(out[: rng.randrange(len(out))])
    if way == 1:
        start = rng.randrange(len(out))
        end = min(len(out), start + rng.choice([4, 64, 4096]))
        out[start:end] = rng.randbytes(end - start)
        return bytes(out)
    near = len(out) if way == 2 else min(len(out), 4096)
    begin = 0 if way != 4 else max(0, len(out) - 20_000)
    for _ in range(rng.choice([1, 3, 12])):
        at = rng.randrange(begin, max(near, begin + 1) if way != 4 else len(out))
        if rng.random() < 0.5:
            out[at] ^= 1 << rng.randrange(8)
        else:
            out[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
    return bytes(out)


def array(spec: TensorSpec) -> np.ndarray:
    """Zeros that the input takes."""
    shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape or ()]
    if np.prod(shape, dtype=float) > MAX_ELEMENTS:
        raise PenstockError("too large to try")
    return np.zeros(shape, spec.dtype)


def main(model: Path, seeds: range, copy: Path) -> None:
    """Try every seed."""
    data, refused = model.read_bytes(), 0
    for seed in seeds:
        print(seed, flush=True)
        copy.write_bytes(damaged(data, seed))
        try:
            with open_model(copy, threads=1) as opened:
                opened.run({spec.name: array(spec) for spec in opened.inputs})
        except PenstockError as error:
            assert str(error), "an error without a message"
            refused += 1
    print("done", refused)


if __name__ == "__main__":
    first, last = map(int, sys.argv[2].split("-"))
    main(Path(sys.argv[1]), range(first, last), Path(sys.argv[3]))
