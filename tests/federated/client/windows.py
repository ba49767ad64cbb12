"""Windows, their labels, and what is in a store of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.federated.client.salvage import sample_hash
from penstock.federated.client.store import Store

SHAPE = (3, 32)


def windows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def labels(count: int, labelled: int = 0) -> NDArray[np.int64]:
    found = np.full(count, -1, np.int64)
    found[:labelled] = np.arange(labelled) % 4
    return found


def put_in(store: Store) -> dict[bytes, int | None]:
    """Every window that is in the file and whole, with its label."""
    with store.database.reading() as db:
        rows = db.execute("SELECT hash, CAST(shape AS BLOB), data, label FROM samples").fetchall()
    return {
        data: label
        for identity, shape, data, label in rows
        if sample_hash(shape.decode(errors="replace"), data) == identity
    }
