"""Which windows each training step takes: labelled ones, unlabelled ones, or some of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

Positions = NDArray[np.intp]
NONE: Positions = np.zeros(0, np.intp)


@dataclass(frozen=True)
class Batch:
    """Positions of windows in the training data."""

    labelled: Positions
    unlabelled: Positions

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def parts(self, most: int) -> Iterator[Batch]:
        """The batch in pieces of at most `most` windows, as equal as they can be, for a memory
        budget that cannot hold it at once."""
        count = -(-len(self) // most)
        split = len(self.labelled)
        both = np.concatenate([self.labelled, self.unlabelled])
        for where in np.array_split(np.arange(len(self)), count):
            yield Batch(both[where[where < split]], both[where[where >= split]])


def epochs_of_batches(
    labelled: Positions,
    unlabelled: Positions,
    *,
    epochs: int,
    batch: int,
    unlabelled_batch: int,
    rng: np.random.Generator,
) -> Iterator[Batch]:
    """Shuffled batches; an epoch visits every window of the pool that needs more steps once.

    The other pool starts again, in a new order, when it has been used up (FixMatch, Sohn et al.,
    NeurIPS 2020: a labelled and a larger unlabelled batch in every step).

    Args:
        batch, unlabelled_batch: windows of each pool in one step; of 0 and of an empty pool: none.

    Raises:
        UsageError: a number is out of range, or there is nothing to train on.
    """
    if epochs < 1 or batch < 1 or unlabelled_batch < 0:
        raise UsageError(
            f"epochs is {epochs}, batch {batch}, unlabelled batch {unlabelled_batch}; expected "
            "1, 1 and 0 or more"
        )
    if not unlabelled_batch:
        unlabelled = NONE
    steps = max(
        -(-len(labelled) // batch),
        -(-len(unlabelled) // unlabelled_batch) if len(unlabelled) else 0,
    )
    if not steps:
        raise UsageError("there is no window to train on: ingest labelled windows first")
    of_labelled = _endless(labelled, batch, rng)
    of_unlabelled = _endless(unlabelled, unlabelled_batch, rng)
    for _ in range(epochs * steps):
        yield Batch(next(of_labelled), next(of_unlabelled))


def _endless(pool: Positions, size: int, rng: np.random.Generator) -> Iterator[Positions]:
    """Slices of one shuffled order after another; the last slice of an order may be short."""
    if not len(pool):
        while True:
            yield NONE
    while True:
        order = rng.permutation(pool)
        for begin in range(0, len(pool), size):
            yield order[begin : begin + size]
