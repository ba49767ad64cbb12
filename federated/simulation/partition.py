"""Which samples belong to which virtual device: at random, by skewed labels, or by user.

Every function gives one sorted array of positions for each device; together they hold every sample
once. The same arguments give the same partition.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

Parts = tuple[NDArray[np.intp], ...]
PARTITIONS = ("iid", "dirichlet", "by-user")


def iid(samples: int, devices: int, seed: int) -> Parts:
    """Samples at random, as many on each device, give or take one.

    Raises:
        UsageError: there are fewer samples than devices.
    """
    _enough(samples, devices, 1)
    order = np.random.default_rng([seed, 1]).permutation(samples).astype(np.intp)
    return tuple(np.sort(part) for part in np.array_split(order, devices))


def dirichlet(
    labels: NDArray[np.int64], devices: int, alpha: float, seed: int, least: int = 2
) -> Parts:
    """Each class is shared out by a draw from Dirichlet(alpha) over devices.

    Small alphas leave most of a class to few devices, and devices of very different sizes (Li et
    al., "Federated learning on non-IID data silos", ICDE 2022, section 4.1). A device that got
    fewer than `least` samples takes some from the largest one, as with many devices most would
    otherwise have none.

    Args:
        labels: int64 [n]; -1, unlabelled, counts as one more class.
        alpha: more than 0; 10,000 is nearly IID.

    Raises:
        UsageError: alpha is not positive, or there are not `least` samples for each device.
    """
    if not (np.isfinite(alpha) and alpha > 0):
        raise UsageError(f"alpha is {alpha}, expected more than 0")
    _enough(len(labels), devices, least)
    rng = np.random.default_rng([seed, 2])
    held: list[list[NDArray[np.intp]]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        where = rng.permutation(np.flatnonzero(labels == label)).astype(np.intp)
        shares = rng.dirichlet(np.full(devices, alpha))
        if not np.isfinite(shares).all():  # all draws of a tiny alpha can round to 0
            shares = np.eye(devices)[rng.integers(devices)]
        cuts = np.round(np.cumsum(shares)[:-1] * len(where)).astype(np.intp)
        for device, part in enumerate(np.split(where, cuts)):
            held[device].append(part)
    parts = [rng.permutation(np.concatenate(pieces)) for pieces in held]
    _top_up(parts, least)
    return tuple(np.sort(part) for part in parts)


def by_user(users: NDArray[np.int64], devices: int, seed: int) -> Parts:
    """All samples of a user on one device; several users on one where there are more of them.

    Raises:
        UsageError: there are more devices than users.
    """
    names = np.unique(users)
    if devices > len(names):
        raise UsageError(
            f"{devices} devices but {len(names)} users in the data; by-user takes one device a "
            "user at most"
        )
    order = np.random.default_rng([seed, 3]).permutation(names)
    return tuple(np.flatnonzero(np.isin(users, own)) for own in np.array_split(order, devices))


def partition(
    kind: str,
    labels: NDArray[np.int64],
    users: NDArray[np.int64] | None,
    devices: int,
    *,
    alpha: float,
    seed: int,
    least: int = 2,
) -> Parts:
    """The partition of this name.

    Raises:
        UsageError: the name is unknown, the data has no users, or as the functions above.
    """
    if kind == "iid":
        return iid(len(labels), devices, seed)
    if kind == "dirichlet":
        return dirichlet(labels, devices, alpha, seed, least)
    if kind != "by-user":
        raise UsageError(f"partition is {kind!r}, expected one of {', '.join(PARTITIONS)}")
    if users is None:
        raise UsageError("partition by-user needs an array `users` in the data file")
    return by_user(users, devices, seed)


def _enough(samples: int, devices: int, least: int) -> None:
    if devices < 1:
        raise UsageError(f"devices is {devices}, expected 1 or more")
    if samples < devices * least:
        raise UsageError(
            f"{samples} samples are not enough for {devices} devices of {least} or more; take "
            f"{samples // least} devices at most"
        )


def _top_up(parts: list[NDArray[np.intp]], least: int) -> None:
    """Move samples from the largest devices to those with fewer than `least`, in place."""
    heap = [(-len(part), device) for device, part in enumerate(parts)]
    heapq.heapify(heap)
    for device in range(len(parts)):
        while len(parts[device]) < least:
            size, giver = heapq.heappop(heap)
            if -size != len(parts[giver]):  # it changed since it was pushed
                heapq.heappush(heap, (-len(parts[giver]), giver))
                continue
            parts[device] = np.append(parts[device], parts[giver][-1])
            parts[giver] = parts[giver][:-1]
            heapq.heappush(heap, (-len(parts[giver]), giver))
