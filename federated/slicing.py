"""Sub-models by slicing: HeteroFL's first channels and FedRolex's rolling window.

HeteroFL (Diao et al., ICLR 2021) gives every device of ratio s the first int(N s) channels of each
layer. FedRolex (Alam et al., NeurIPS 2022) starts the window at channel r mod N in round r and
wraps around, so that over N rounds every channel is trained by every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.federated.arrays import Arrays
from penstock.federated.submodels import ModelSpec, check_ratio, width

Channels = dict[str, NDArray[np.intp]]


def static_channels(spec: ModelSpec, ratio: float) -> Channels:
    """HeteroFL: the first int(N s) channels of each group."""
    check_ratio(ratio)
    return {
        group: np.arange(width(count, ratio), dtype=np.intp)
        for group, count in spec.groups().items()
    }


def rolling_channels(spec: ModelSpec, ratio: float, round_number: int) -> Channels:
    """FedRolex: int(N s) channels from channel `round_number` mod N on, wrapping around.

    The indices are sorted, which changes nothing but their order, and makes ratio 1 the identity in
    every round.
    """
    check_ratio(ratio)
    return {
        group: np.sort((round_number + np.arange(width(count, ratio))) % count).astype(np.intp)
        for group, count in spec.groups().items()
    }


def extract(arrays: Mapping[str, NDArray[Any]], spec: ModelSpec, channels: Channels) -> Arrays:
    """Copies of the sub-model's values.

    Args:
        arrays: the full model's, as `spec` says.
        channels: of each group.
    """
    return {
        tensor.name: np.ascontiguousarray(
            arrays[tensor.name][np.ix_(*spec.index(tensor, channels))]
        )
        if tensor.axes
        else np.array(arrays[tensor.name])
        for tensor in spec
    }
