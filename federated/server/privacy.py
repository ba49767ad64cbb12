"""Central differential privacy of whole devices, with the epsilon that Flower's accountant tells.

Every update's change is clipped to an L2 norm C over all its tensors; the sum of the changes gets
Gaussian noise of standard deviation z C; each value is then divided by the number of devices that
were asked to train it (McMahan et al., ICLR 2018; Flower's fixed clipping). A device that did not
answer adds nothing to the sum, so it cannot be told from one whose change was zero. The division
uses the number asked, not the number of answers: it is the same with or without any one device.

Accounted without amplification by sampling, neighbours differing by one device. What is protected
is the global model; the server itself sees every update.

Flower's strategy wrappers take models of one shape only, and its clipping divides by the norm,
which fails for a device that changed nothing; hence the accountant is Flower's and these twenty
lines are not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, FormatError, UsageError
from penstock.federated.aggregation import Update
from penstock.federated.algorithm import Sent
from penstock.federated.arrays import Arrays
from penstock.federated.server.settings import PrivacySettings
from penstock.federated.submodels import ModelSpec

if TYPE_CHECKING:
    from flwr.serverapp import RdpAccountant


class Ledger:
    """What was spent, and whether another round may be.

    Raises:
        BackendMissingError: Flower or dp-accounting is not installed.
    """

    def __init__(self, settings: PrivacySettings) -> None:
        self.settings = settings
        self._accountant = _accountant(settings)

    @property
    def epsilon(self) -> float:
        """Spent so far, at the settings' delta; 0 before the first round."""
        if not self._accountant.num_releases:
            return 0.0
        return float(self._accountant.get_epsilon(self.settings.delta))

    def check_room(self, asked: int) -> None:
        """Refuse a round that would spend more than `most_epsilon`.

        Raises:
            UsageError: it would, or more devices were asked than the population has.
        """
        if asked > self.settings.population:
            raise UsageError(
                f"privacy.population is {self.settings.population}, but {asked} devices take part"
            )
        limit = self.settings.most_epsilon
        if limit and self._accountant.would_exceed(self._event(asked), limit):
            raise UsageError(
                f"privacy.most_epsilon is {limit:g}; {self.epsilon:.4g} is spent, and another "
                "round would go beyond. The global model of the last round is the result"
            )

    def spend(self, asked: int) -> None:
        """Note one release."""
        self._accountant.compose(self._event(asked))

    def spend_until(self, epsilon: float, asked: int) -> int:
        """Note releases until at least this epsilon is spent; how many there were.

        For those that a journal tells of and a checkpoint does not. One that is not finite counts
        as nothing told.
        """
        added = 0
        while math.isfinite(epsilon) and self.epsilon < epsilon * (1 - 1e-9):
            self.spend(asked)
            added += 1
        return added

    def to_json(self) -> str:
        """For the checkpoint."""
        return json.dumps(self._accountant.state_dict())

    def restore(self, text: str) -> None:
        """Go on from a checkpoint's ledger.

        Raises:
            FormatError: it is of other privacy settings.
        """
        try:
            self._accountant.load_state_dict(json.loads(text))
        except ValueError as error:
            raise FormatError(f"checkpoint: the privacy ledger cannot be used: {error}") from error

    def _event(self, asked: int) -> Any:
        from flwr.serverapp import GaussianPrivacyEvent

        return GaussianPrivacyEvent(
            self.settings.noise_multiplier, max(1, asked), self.settings.population
        )


def private_mean(
    base: Mapping[str, NDArray[Any]],
    spec: ModelSpec,
    asked: Sequence[Sent],
    answers: Sequence[tuple[Update, Sent]],
    settings: PrivacySettings,
    noise: np.random.Generator,
) -> Arrays:
    """The next global model.

    Args:
        base: the global model before the round.
        asked: what was sent, to every device, whether it answered or not.
        answers: each update with what had been sent to its device.
    """
    total = {t.name: np.zeros(t.shape, np.float64) for t in spec if t.averaged}
    counts = {t.name: np.zeros(t.shape, np.int64) for t in spec if t.averaged}
    for sent in asked:
        for tensor in spec:
            if tensor.averaged:
                counts[tensor.name][np.ix_(*spec.index(tensor, sent.channels))] += 1
    for update, sent in answers:
        for name, change in _clipped(update.arrays, sent.arrays, spec, settings).items():
            tensor = next(t for t in spec if t.name == name)
            total[name][np.ix_(*spec.index(tensor, update.channels))] += change
    result: Arrays = {}
    deviation = settings.noise_multiplier * settings.clipping_norm
    for tensor in spec:
        before = base[tensor.name]
        if not tensor.averaged:  # a counter tells how much a device trained: it stays
            result[tensor.name] = np.array(before)
            continue
        noisy = total[tensor.name] + noise.normal(0.0, deviation, tensor.shape)
        count = counts[tensor.name]
        change = np.where(count > 0, noisy / np.maximum(count, 1), 0.0)
        value = before.astype(np.float64) + change
        if tensor.kind == "running_var":
            value = np.maximum(value, 0.0)
        result[tensor.name] = value.astype(before.dtype)
    return result


def _clipped(
    arrays: Mapping[str, NDArray[Any]],
    sent: Mapping[str, NDArray[Any]],
    spec: ModelSpec,
    settings: PrivacySettings,
) -> dict[str, NDArray[np.float64]]:
    change = {
        t.name: arrays[t.name].astype(np.float64) - sent[t.name].astype(np.float64)
        for t in spec
        if t.averaged
    }
    norm = float(np.sqrt(sum(float(np.sum(value * value)) for value in change.values())))
    if norm > settings.clipping_norm:
        change = {n: value * (settings.clipping_norm / norm) for n, value in change.items()}
    return change


def _accountant(settings: PrivacySettings) -> RdpAccountant:
    try:
        from flwr.serverapp import (
            NeighboringRelation,
            PrivacyConfig,
            RdpAccountant,
            SamplingMethod,
        )

        return RdpAccountant(
            PrivacyConfig(
                target_delta=settings.delta,
                population_size=settings.population,
                neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
                sampling_method=SamplingMethod.NO_AMPLIFICATION,
            )
        )
    except ImportError as error:
        raise BackendMissingError(
            "[privacy] needs Flower's accountant: pip install 'penstock[privacy]'"
        ) from error
