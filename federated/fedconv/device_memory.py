"""What FedConv keeps from round to round: filters by ratio, filters and weights by device.

Bounded: of the devices only the `keep_devices` seen last; one that comes back later starts afresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, RefusedUpdateError
from penstock.federated.arrays import Arrays, check_arrays, copy_arrays
from penstock.federated.fedconv.filters import filter_shapes
from penstock.federated.fedconv.profiles import Profile
from penstock.federated.fedconv.weighting import new_weights
from penstock.federated.submodels import ModelSpec, check_ratio

COMPRESSION, DILATION, WEIGHTS, SEEN = "compression/", "dilation/", "weights/", "seen/"


class DeviceMemory:
    """Attributes:
    compression: filters by ratio; dilation: by device and ratio; weights: by device.
    last_round: in which each device was seen last.
    """

    def __init__(self, spec: ModelSpec, profile: Profile) -> None:
        self._spec, self._profile = spec, profile
        self.compression: dict[float, Arrays] = {}
        self.dilation: dict[tuple[str, float], Arrays] = {}
        self.weights: dict[str, Arrays] = {}
        self.last_round: dict[str, int] = {}

    def seen(self, devices: Sequence[str], round_number: int) -> None:
        """Note who was there; where devices are too many, forget those longest away."""
        self.last_round |= dict.fromkeys(devices, round_number)
        order = sorted(self.last_round, key=lambda d: (-self.last_round[d], d))
        for device in order[self._profile.keep_devices :]:
            del self.last_round[device]
            self.weights.pop(device, None)
            for key in [key for key in self.dilation if key[0] == device]:
                del self.dilation[key]

    def state(self) -> Arrays:
        """All of it, by names that `restore` takes apart again."""
        held: Arrays = {}
        for ratio, filters in self.compression.items():
            held |= {f"{COMPRESSION}{ratio!r}/{name}": a for name, a in filters.items()}
        for (device, ratio), filters in self.dilation.items():
            held |= {f"{DILATION}{device}/{ratio!r}/{name}": a for name, a in filters.items()}
        for device, weights in self.weights.items():
            held |= {f"{WEIGHTS}{device}/{name}": a for name, a in weights.items()}
        for device, number in self.last_round.items():
            held[SEEN + device] = np.array(number, np.int64)
        return held

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take back what `state` gave; names of others are passed over.

        Raises:
            FormatError: filters or weights of another model or profile.
        """
        shapes = new_weights(self._spec, self._profile, np.random.default_rng(0))
        for (where,), filters in _grouped(state, COMPRESSION, 1).items():
            ratio = _ratio(where)
            self.compression[ratio] = _checked(filters, self._filters(ratio), where)
        for (device, where), filters in _grouped(state, DILATION, 2).items():
            ratio = _ratio(where)
            self.dilation[device, ratio] = _checked(filters, self._filters(ratio), device)
        for (device,), weights in _grouped(state, WEIGHTS, 1).items():
            self.weights[device] = _checked(weights, shapes, device)
        for name, number in state.items():
            if name.startswith(SEEN):
                if number.shape != () or number.dtype != np.int64:
                    raise FormatError(f"checkpoint: {name} is {number!r}, expected a round")
                self.last_round[name.removeprefix(SEEN)] = int(number)

    def _filters(self, ratio: float) -> Arrays:
        shapes = filter_shapes(self._spec, ratio, self._profile.flatten_linear)
        return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}


def _grouped(
    state: Mapping[str, NDArray[Any]], prefix: str, levels: int
) -> dict[tuple[str, ...], Arrays]:
    """Arrays under a prefix by what stands before their own names; a device may hold slashes."""
    found: dict[tuple[str, ...], Arrays] = {}
    for name, array in state.items():
        if name.startswith(prefix):
            parts = name.removeprefix(prefix).rsplit("/", levels)
            if len(parts) != levels + 1:
                raise FormatError(f"checkpoint: {name!r} is not a name that FedConv writes")
            found.setdefault(tuple(parts[:-1]), {})[parts[-1]] = array
    return found


def _ratio(text: str) -> float:
    try:
        return check_ratio(float(text))
    except ValueError as error:  # UsageError is one
        raise FormatError(f"checkpoint: {text!r} is not a ratio") from error


def _checked(arrays: Arrays, expected: Arrays, owner: str) -> Arrays:
    try:
        return copy_arrays(check_arrays(arrays, expected, f"checkpoint, FedConv of {owner}"))
    except RefusedUpdateError as error:
        raise FormatError(f"{error}; it is of another model or profile") from error
