"""Baselines with the same public samples as FedConv: tune after each round, or the server alone.

FedConv's paper compares with federated averaging that sees no public data, while its own server
trains on it in every round. "Slice and tune" is the fair rival; this file makes it of any
algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.federated.aggregation import Update
from penstock.federated.algorithm import Algorithm, FedAvg, Sent
from penstock.federated.arrays import Arrays
from penstock.federated.public_training import PublicTrainer


def tuned_name(inner: str) -> str:
    """What an algorithm of this name is called when it is tuned; its checkpoints and records say
    so."""
    return f"{inner} + public fine-tuning"


class PublicTuning(Algorithm):
    """Another algorithm, whose global model is trained on the public samples after each round.

    Args:
        inner: does everything else.
        trainer: with the public samples.
        epochs, rate: of each tuning; the hold-out says which state is kept.
        seed: of the batches' order, with the round's number.
    """

    def __init__(
        self,
        inner: Algorithm,
        trainer: PublicTrainer,
        *,
        epochs: int,
        rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(inner.spec, inner.arrays)
        self.inner, self.trainer, self.epochs, self.rate, self.seed = (
            inner, trainer, epochs, rate, seed,
        )  # fmt: skip
        self.name = tuned_name(inner.name)

    def begin_round(self, number: int) -> None:
        """The inner algorithm's."""
        super().begin_round(number)
        self.inner.begin_round(number)

    def send(self, device: str, ratio: float) -> Sent:
        """The inner algorithm's."""
        return self.inner.send(device, ratio)

    def end_round(self, updates: Sequence[Update]) -> None:
        """Aggregate, then tune, also in a round without updates.

        Raises:
            RefusedUpdateError: as the inner algorithm.
        """
        self.inner.end_round(updates)
        rng = np.random.default_rng([self.seed, self.round_number])
        tuned, fit = self.trainer.tune(
            self.inner.arrays, epochs=self.epochs, rate=self.rate, rng=rng
        )
        self.inner.arrays = self.arrays = tuned
        self.figures = self.inner.figures | {
            "hold_out_loss": fit.kept.loss,
            "hold_out_accuracy": fit.kept.accuracy,
            "public_passes": float(fit.passes),
        }

    def state(self) -> Arrays:
        """The inner algorithm's."""
        return self.inner.state()

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inner algorithm's.

        Raises:
            FormatError: as the inner algorithm.
        """
        self.inner.restore(state)
        self.arrays, self.round_number = self.inner.arrays, self.inner.round_number


class ServerOnly(PublicTuning):
    """The server trains on the public samples and takes nothing from any device."""

    def __init__(
        self,
        inner: FedAvg,
        trainer: PublicTrainer,
        *,
        epochs: int,
        rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(inner, trainer, epochs=epochs, rate=rate, seed=seed)
        self.name = "server only"

    def end_round(self, updates: Sequence[Update]) -> None:
        """Tune; the updates are dropped."""
        del updates
        super().end_round([])
