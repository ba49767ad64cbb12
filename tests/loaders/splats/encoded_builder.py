"""Encoded splats for tests: every kind of codebook and every attribute that a file may have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.loaders.splats.codebook import Codebook
from penstock.loaders.splats.encoded import EncodedSplats, Net, SubVector, scalar_sub_vector
from penstock.quant.appearance_nets import FEATURES, HIDDEN, net_shapes
from penstock.quant.lattice import Lattice


def random_book(rng: np.random.Generator, columns: int, spread: float) -> Codebook:
    """Of a random kind; numbers between plus and minus `spread`."""
    size = int(rng.integers(1, 40))
    values = rng.uniform(-spread, spread, (size, columns))
    kind = int(rng.integers(4))
    if kind == 0:
        return Codebook.half(values)
    if kind == 1:
        return Codebook.grid(values, spread / 50)
    if kind == 2 and columns == 1:
        return Codebook.table(values[:, 0])
    if kind == 2:
        numbers = np.unique(values.astype(np.float32))
        return Codebook.palette(rng.integers(0, len(numbers), (size, columns)), numbers)
    return Codebook.uniform(-spread, spread / 20, 41) if columns == 1 else Codebook.half(values)


def random_indices(rng: np.random.Generator, count: int, size: int) -> NDArray[np.uint16]:
    """Even, skewed or slowly changing ones."""
    kind = int(rng.integers(3))
    if kind == 0:
        found = rng.integers(0, size, count)
    elif kind == 1:
        found = np.minimum(rng.geometric(rng.choice([0.2, 0.5]), count) - 1, size - 1)
    else:
        found = (np.cumsum(rng.integers(-1, 2, count)) + size // 2) % size
    return found.astype(np.uint16)


def random_encoded(
    count: int = 50, degree: int = 0, *, dynamic: bool = False, seed: int = 0
) -> EncodedSplats:
    """n splats within the format, of random numbers."""
    rng = np.random.default_rng(seed)
    bits = int(rng.integers(1, 22))
    logarithm = bool(rng.integers(2))
    edge = 4.0 / (1 << bits)
    lattice = Lattice(bits, (-2.0, -1.0, 0.5), (edge, edge / 2, edge), logarithm)
    digits = None
    if rng.integers(2):
        digits = rng.integers(1, bits + 1, count).astype(np.uint8)
    near = 1 << int(rng.integers(1, bits + 1))
    cells = rng.integers(0, near, (count, 3)).astype(np.uint32)
    if digits is not None:
        dropped = (bits - digits.astype(np.uint32))[:, None]
        cells = cells >> dropped << dropped

    parts: list[SubVector] = []

    def add(name: str, columns: int, spread: float) -> None:
        at = 0
        shared: Codebook | None = None
        while at < columns:
            own = int(rng.integers(1, columns - at + 1))
            book = random_book(rng, own, spread)
            if shared is not None and own == shared.columns and rng.integers(2):
                book = shared
            shared = book
            indices = random_indices(rng, count, book.size)
            parts.append(SubVector(f"{name}.{len(parts)}", book, indices))
            at += own
        if rng.integers(4) == 0:  # a second stage on the last columns
            book = random_book(rng, 1, spread / 4)
            indices = random_indices(rng, count, book.size)
            parts.append(SubVector(f"{name}.more", book, indices, first=columns - 1))

    add("scale", 3, 5)
    if rng.integers(3) == 0:
        add("smallest_three", 3, 0.5)
        largest = rng.integers(0, 4, count).astype(np.uint16)
        parts.append(SubVector("largest", Codebook.uniform(0, 1, 4), largest))
    else:
        add("rotation", 3, 0.6)
    add("opacity", 1, 1.2)
    add("opponent" if rng.integers(2) else "dc", 3, 2)
    if degree and rng.integers(4):
        add("rest", 3 * ((degree + 1) ** 2 - 1), 0.5)
    if dynamic:
        if rng.integers(3):
            add("displacement", 3, 0.2)
        parts.append(scalar_sub_vector("t_center", rng.uniform(0, 10, count), 0.01))
        parts.append(scalar_sub_vector("t_sigma", rng.uniform(-4, 1, count), 0.1))
    return EncodedSplats(
        lattice,
        cells,
        tuple(parts),
        degree,
        digits,
        *((0.0, 10.0, 30.0) if dynamic else (None, None, None)),
    )


def with_nets(encoded: EncodedSplats, seed: int = 0) -> EncodedSplats:
    """The same splats, whose colours and opacities implicit nets give."""
    rng = np.random.default_rng(seed)
    parts = [
        part
        for part in encoded.parts
        if part.attribute not in ("opacity", "dc", "opponent", "rest")
    ]
    book = Codebook.half(rng.normal(size=(64, FEATURES)))
    indices = rng.integers(0, book.size, encoded.count).astype(np.uint16)
    parts.append(SubVector("appearance.0", book, indices))
    nets = [
        Net(name, (0.2 * rng.normal(size=HIDDEN * (inputs + outputs))).astype(np.float16))
        for name, (inputs, outputs, _) in net_shapes(encoded.degree).items()
        if outputs
    ]
    nets.append(Net("frame", np.array([0, 0, 0, 2, 0, 10], np.float16)))
    return replace(encoded, parts=tuple(parts), nets=tuple(nets))


encoded_splats = st.builds(
    random_encoded,
    count=st.integers(0, 120),
    degree=st.integers(0, 3),
    dynamic=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


def by_place(encoded: EncodedSplats, columns: NDArray[np.floating]) -> NDArray[np.intp]:
    """An order of splats that does not depend on the one they are in: by all their columns."""
    keys = np.concatenate([encoded.cells.astype(np.float64), columns], axis=1)
    return np.lexsort(keys.T[::-1])
