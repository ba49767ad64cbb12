"""The server's side of FedMobile-style learning.

Devices get the global model (a slice of it where they are narrow) and are averaged with the weight
labelled + c * confident. At the end of a chunk of time the global model is kept: devices distil
from it in the next chunk, so that what it knew of past chunks stays without their data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, RefusedUpdateError, UsageError
from penstock.federated.algorithm import HeteroFL
from penstock.federated.arrays import Arrays, check_arrays, copy_arrays
from penstock.federated.fedmobile.settings import FedMobileSettings
from penstock.federated.protocol import TrainResult
from penstock.federated.slicing import extract, static_channels
from penstock.federated.submodels import ModelSpec

TEACHER, CHUNK = "teacher/", "chunk"  # names in `state()`
LEAST_WEIGHT = 1e-3  # windows; the aggregator takes no weight of 0


class FedMobile(HeteroFL):
    """An `Algorithm` over chunks of time.

    Attributes:
        settings: what tasks carry.
        chunk: of time, from 0.
        previous: the global model at the end of the previous chunk; None in the first.
    """

    name = "fedmobile"

    def __init__(
        self,
        spec: ModelSpec,
        arrays: Mapping[str, NDArray[Any]],
        settings: FedMobileSettings | None = None,
    ) -> None:
        super().__init__(spec, arrays)
        self.settings = settings or FedMobileSettings()
        self.chunk = 0
        self.previous: Arrays | None = None

    def begin_chunk(self, chunk: int) -> None:
        """Say which chunk the coming rounds belong to; a later one than before keeps the global
        model as the next teacher. Devices may keep it as well: it is what they are sent in the
        first round of the chunk.

        Raises:
            UsageError: it is before the chunk that goes on.
        """
        if chunk < self.chunk:
            raise UsageError(f"fedmobile: chunk {chunk} comes after chunk {self.chunk}")
        if chunk > self.chunk:
            self.previous = copy_arrays(self.arrays)
            self.chunk = chunk

    def teacher(self, ratio: float) -> Arrays | None:
        """The previous chunk's model as a device of this ratio has it."""
        if self.previous is None:
            return None
        return extract(self.previous, self.spec, static_channels(self.spec, ratio))

    def weight(self, result: TrainResult) -> float:
        """labelled + c * confident: an update from guesses alone counts, but less; one that only
        stayed close to the previous chunk's model counts next to nothing."""
        taught = result.labelled + self.settings.confident_weight * result.confident
        return max(taught, LEAST_WEIGHT)

    def state(self) -> Arrays:
        """With the chunk and its teacher."""
        held = super().state() | {CHUNK: np.array(self.chunk, np.int64)}
        teacher = self.previous or {}
        return held | {TEACHER + name: array for name, array in teacher.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """As the base; the chunk and its teacher too."""
        chunk = state.get(CHUNK)
        if chunk is None or chunk.shape != () or chunk.dtype.kind != "i" or chunk < 0:
            raise FormatError(f"checkpoint: {CHUNK} is {chunk!r}, fedmobile expects a count")
        held = {
            name.removeprefix(TEACHER): array
            for name, array in state.items()
            if name.startswith(TEACHER)
        }
        previous = None
        if held:
            expected = self.spec.by_name()
            try:
                previous = copy_arrays(check_arrays(held, expected, "checkpoint's teacher"))
            except RefusedUpdateError as error:
                raise FormatError(f"{error}; it is of another model") from error
        super().restore(state)
        self.chunk, self.previous = int(chunk), previous
