"""The server's side of a federated algorithm, without a network: one round in four calls.

    algorithm.begin_round(number)              server training, filters
    sent = algorithm.send(device, ratio)       for each device that takes part
    algorithm.end_round(updates)               whatever came back, in any order
    algorithm.state()                          all that the next round needs, for the checkpoint

The same object runs under Flower's ServerApp, in `penstock federated simulate` and in the
benchmarks. It never sees a socket, a clock or a file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, RefusedUpdateError
from penstock.federated.aggregation import Update, aggregate
from penstock.federated.arrays import Arrays, check_arrays, copy_arrays
from penstock.federated.protocol import TrainResult
from penstock.federated.slicing import Channels, extract, rolling_channels, static_channels
from penstock.federated.submodels import ModelSpec

GLOBAL = "global/"  # of the global model's arrays in `state()`


@dataclass(frozen=True)
class Sent:
    """What goes to one device: a sub-model, and which channels of the full model it holds."""

    arrays: Arrays
    ratio: float
    channels: Channels = field(repr=False)


class Algorithm(ABC):
    """Base: holds the global model.

    Attributes:
        spec: of the full model.
        arrays: the global model after the last round that ended.
        round_number: of the round that goes on, or that ended last; 0 before the first.
        figures: of the last round, for the report: name to number.
    """

    name = ""

    def __init__(self, spec: ModelSpec, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.spec = spec
        self.arrays = copy_arrays(check_arrays(arrays, spec.by_name(), "the initial model"))
        self.round_number = 0
        self.figures: dict[str, float] = {}

    def begin_chunk(self, chunk: int) -> None:
        """Say which chunk of time the coming rounds belong to; most algorithms know no chunks."""
        del chunk

    def begin_round(self, number: int) -> None:
        """What the server does before it sends anything."""
        self.round_number = number
        self.figures = {}

    @abstractmethod
    def send(self, device: str, ratio: float) -> Sent:
        """The sub-model for a device; the same for the same round, device and ratio."""

    def weight(self, result: TrainResult) -> float:
        """How much a device's update counts: the examples it was trained on."""
        return float(result.examples)

    def end_round(self, updates: Sequence[Update]) -> None:
        """Take in what came back; without updates the global model stays.

        Raises:
            RefusedUpdateError: an update does not fit; nothing was changed.
        """
        self.arrays = aggregate(self.arrays, self.spec, updates)

    def state(self) -> Arrays:
        """Everything the next round needs, as arrays; `restore` takes it back."""
        held = {GLOBAL + name: array for name, array in self.arrays.items()}
        return held | {"round_number": np.array(self.round_number, np.int64)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a checkpoint's state.

        Raises:
            FormatError: it is of another model or algorithm.
        """
        expected = {GLOBAL + tensor.name for tensor in self.spec} | {"round_number"}
        missing = sorted(expected - set(state))
        if missing:
            raise FormatError(f"checkpoint: lacks {missing[0]!r}, which {self.name} needs")
        number = state["round_number"]
        if number.shape != () or number.dtype.kind != "i" or number < 0:
            raise FormatError(f"checkpoint: round_number is {number!r}, expected a count")
        held = {
            name.removeprefix(GLOBAL): array
            for name, array in state.items()
            if name.startswith(GLOBAL)
        }
        try:
            held = check_arrays(held, self.spec.by_name(), "checkpoint")
        except RefusedUpdateError as error:
            raise FormatError(f"{error}; it is of another model") from error
        self.arrays = copy_arrays(held)
        self.round_number = int(number)


class FedAvg(Algorithm):
    """Every device trains the whole model (McMahan et al., AISTATS 2017)."""

    name = "fedavg"

    def send(self, device: str, ratio: float) -> Sent:
        """The global model, whatever the ratio."""
        del device, ratio
        return Sent(copy_arrays(self.arrays), 1.0, static_channels(self.spec, 1.0))


class HeteroFL(Algorithm):
    """Static slices: a device of ratio s trains the first int(N s) channels of each layer."""

    name = "heterofl"

    def send(self, device: str, ratio: float) -> Sent:
        """The slice of this ratio."""
        del device
        channels = static_channels(self.spec, ratio)
        return Sent(extract(self.arrays, self.spec, channels), ratio, channels)


class FedRolex(Algorithm):
    """Rolling slices: the window of channels moves on by one in each round."""

    name = "fedrolex"

    def send(self, device: str, ratio: float) -> Sent:
        """The slice of this ratio in this round."""
        del device
        channels = rolling_channels(self.spec, ratio, self.round_number)
        return Sent(extract(self.arrays, self.spec, channels), ratio, channels)
