"""Averages updates of different widths, value by value, and refuses every shape it does not know.

Each value of the full model becomes the mean of the devices that trained it, weighted by their
examples (HeteroFL, section 3); a value that no device trained keeps what it was. Sums are taken in
float64 in the order of the devices' identities, so that the order in which updates arrive, or a
device that is missing, cannot change what the others give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import RefusedUpdateError
from penstock.federated.arrays import MOST_COUNT, Arrays, check_arrays
from penstock.federated.slicing import Channels
from penstock.federated.submodels import ModelSpec

MOST_WEIGHT = 1e12  # examples; times 1e18, the largest value, summed over any fleet: no overflow


@dataclass(frozen=True)
class Update:
    """What one device sent back.

    Attributes:
        device: its stable identity.
        arrays: the trained sub-model.
        channels: which channels of the full model these are, of each group.
        weight: examples it was trained on; more than 0, at most 1e12.
    """

    device: str
    arrays: Mapping[str, NDArray[Any]]
    channels: Channels = field(repr=False)
    weight: float


def aggregate(
    base: Mapping[str, NDArray[Any]], spec: ModelSpec, updates: Sequence[Update]
) -> Arrays:
    """The next full model.

    Args:
        base: the full model before the round.
        spec: its tensors.
        updates: any number, in any order; none gives a copy of `base`.

    Raises:
        RefusedUpdateError: two updates of one device, a weight out of its range,
            channels that are not this model's, or arrays that `check_arrays` refuses.
    """
    ordered = check_updates(updates, spec)
    result: Arrays = {}
    for tensor in spec:
        before = base[tensor.name]
        if not tensor.averaged:
            counts = [int(update.arrays[tensor.name]) for update in ordered]
            most = min(max(counts, default=int(before)), MOST_COUNT // 2)  # devices count on
            result[tensor.name] = np.asarray(most, before.dtype)
            continue
        total = np.zeros(tensor.shape, np.float64)
        weights = np.zeros(tensor.shape, np.float64)
        for update in ordered:
            where = np.ix_(*spec.index(tensor, update.channels))
            total[where] += update.weight * update.arrays[tensor.name].astype(np.float64)
            weights[where] += update.weight
        trained = weights > 0
        mean = np.array(before)
        mean[trained] = (total[trained] / weights[trained]).astype(before.dtype)
        result[tensor.name] = mean
    return result


def check_updates(updates: Sequence[Update], spec: ModelSpec) -> list[Update]:
    """A round's updates in the order of their devices, each checked.

    Raises:
        RefusedUpdateError: as `aggregate`.
    """
    ordered = sorted(updates, key=lambda update: update.device)
    for update, following in zip(ordered, ordered[1:], strict=False):
        if update.device == following.device:
            raise RefusedUpdateError(f"device {update.device} sent two updates for one round")
    for update in ordered:
        check_update(update, spec)
    return ordered


def check_update(update: Update, spec: ModelSpec) -> None:
    """Refuse an update that does not fit the model.

    Raises:
        RefusedUpdateError: as `aggregate`.
    """
    source = f"device {update.device}"
    if not 0 < update.weight <= MOST_WEIGHT:  # NaN compares false
        raise RefusedUpdateError(
            f"{source}: weight is {update.weight}, expected more than 0 and at most {MOST_WEIGHT}"
        )
    groups = spec.groups()
    if set(update.channels) != set(groups):
        raise RefusedUpdateError(
            f"{source}: channels of {sorted(update.channels)}, expected {sorted(groups)}"
        )
    for group, count in groups.items():
        channels = update.channels[group]
        if (
            channels.ndim != 1
            or not len(channels)
            or channels.min() < 0
            or channels.max() >= count
            or len(np.unique(channels)) != len(channels)
        ):
            raise RefusedUpdateError(
                f"{source}: channels of group {group!r} are not distinct numbers under {count}"
            )
    expected = {
        tensor.name: np.empty(
            tuple(len(index) for index in spec.index(tensor, update.channels)), tensor.dtype
        )
        for tensor in spec
    }
    check_arrays(update.arrays, expected, source)
