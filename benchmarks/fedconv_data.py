"""MNIST's 10,000 test images, cut into public, client and test parts that share no image."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.federated.public_training import PublicSet
from penstock.federated.training.data import TrainingData

PUBLIC, HELD_OUT, TEST = 600, 120, 4000  # of 10,000; the hold-out is a part of the public samples
LEAST = 20  # images of a client


@dataclass(frozen=True)
class Split:
    """Disjoint parts.

    Attributes:
        public: the server's; test: for the tables only.
        clients: by identity.
    """

    public: PublicSet
    test: TrainingData
    clients: dict[str, TrainingData]


def read_mnist(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images [10000, 1, 28, 28], standardised, and labels."""
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return ((pixels / 255 - 0.1307) / 0.3081).astype(np.float32), labels


def split(
    images: NDArray[np.float32], labels: NDArray[np.int64], alpha: float, clients: int, seed: int
) -> Split:
    """Shuffle by seed, cut, and deal the clients' part by Dirichlet(alpha); infinite alpha: evenly.

    Public and test part depend on the seed alone.
    """
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(labels))
    cuts = np.cumsum([TEST, HELD_OUT, PUBLIC - HELD_OUT])
    test, held, public, rest = np.split(order, cuts)
    dealt = _deal(labels[rest], alpha, clients, rng)

    def part(rows: NDArray[np.intp]) -> TrainingData:
        return TrainingData(np.ascontiguousarray(images[rows]), labels[rows])

    names = {f"client{number:02d}": part(rest[rows]) for number, rows in enumerate(dealt)}
    return Split(PublicSet(part(public), part(held)), part(test), names)


def _deal(
    labels: NDArray[np.int64], alpha: float, clients: int, rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Positions for each client; drawn again until each has at least 20."""
    if np.isinf(alpha):
        return [np.sort(rows) for rows in np.array_split(rng.permutation(len(labels)), clients)]
    for _ in range(10_000):
        parts: list[list[NDArray[np.intp]]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(clients, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for mine, piece in zip(parts, np.split(rows, cuts), strict=True):
                mine.append(piece)
        dealt = [np.sort(np.concatenate(mine)) for mine in parts]
        if min(map(len, dealt)) >= LEAST:
            return dealt
    raise ValueError(f"alpha {alpha}: no draw gave each of {clients} clients {LEAST} images")
