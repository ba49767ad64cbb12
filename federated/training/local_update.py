"""What one device's training minimises: the part in which algorithms differ.

The loop around it (Adam, budgets, accumulated gradients) is the same for all: `loop.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from penstock.errors import UsageError
from penstock.federated.training.batches import NONE, Batch, epochs_of_batches
from penstock.federated.training.data import TrainingData

if TYPE_CHECKING:
    import torch
    from torch import nn


class LocalUpdate(Protocol):
    """One device's training in one round.

    Attributes:
        labelled: windows with a label that it uses.
    """

    labelled: int

    def prepare(self, windows: int, room: int, should_stop: Callable[[], bool]) -> None:
        """Whatever it computes before the first step; the loss is measured before.

        Args:
            windows: that may go through a model at once.
            room: bytes that it may take meanwhile; 0: no limit.
            should_stop: asked now and then; there will be no step once it says so.
        """

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """One batch a step, for all epochs."""

    def loss(self, part: Batch, whole: Batch, rng: np.random.Generator) -> torch.Tensor:
        """The part's share of the batch's loss; the shares of a batch's parts add up to it."""

    def step_done(self) -> None:
        """The optimizer has made a step."""

    def confident(self) -> int:
        """Unlabelled windows that taught something."""

    def extra_bytes(self) -> int:
        """Held beside weights, gradients, optimizer and activations: teachers."""


class Supervised:
    """Cross-entropy on labelled windows: FedAvg, HeteroFL, FedRolex and FedConv on the device.

    Raises:
        UsageError: no window has a label.
    """

    def __init__(self, module: nn.Module, data: TrainingData, *, epochs: int, batch: int) -> None:
        import torch

        if not len(data.labelled):
            raise UsageError(
                f"none of the {len(data)} windows here has a label, and this algorithm learns "
                "from labels only; ingest some, or take part in a fedmobile federation"
            )
        self.labelled = len(data.labelled)
        self._module, self._data, self._epochs, self._batch = module, data, epochs, batch
        self._inputs = torch.from_numpy(data.inputs)
        self._labels = torch.from_numpy(data.labels)

    def prepare(self, windows: int, room: int, should_stop: Callable[[], bool]) -> None:
        """Nothing to do."""

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """As the protocol says."""
        return epochs_of_batches(
            self._data.labelled,
            NONE,
            epochs=self._epochs,
            batch=self._batch,
            unlabelled_batch=0,
            rng=rng,
        )

    def loss(self, part: Batch, whole: Batch, rng: np.random.Generator) -> torch.Tensor:
        """Mean cross-entropy over the batch."""
        import torch

        where = torch.from_numpy(part.labelled)
        total = torch.nn.functional.cross_entropy(
            self._module(self._inputs[where]), self._labels[where], reduction="sum"
        )
        return total / len(whole.labelled)

    def step_done(self) -> None:
        """Nothing to do."""

    def confident(self) -> int:
        """None: it uses no unlabelled windows."""
        return 0

    def extra_bytes(self) -> int:
        """None: there is no teacher."""
        return 0
