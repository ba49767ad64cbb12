"""Small models of every kind, with even and odd widths, and fresh arrays for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from penstock.federated.aggregation import Update
from penstock.federated.algorithm import Algorithm
from penstock.federated.arrays import Arrays
from penstock.federated.models import ModelOptions
from penstock.federated.submodels import RATIOS, ModelSpec

IMAGES = ModelOptions("image-cnn", (1, 9, 12), 3, (5, 7))
WINDOWS = ModelOptions("sensing-cnn", (6, 16), 4, (8, 5))
FEATURES = ModelOptions("sensing-mlp", (11,), 6, (9, 4, 6))
MODELS = (IMAGES, WINDOWS, FEATURES)
RATIOS_OF_TESTS = (*RATIOS, 0.9, 1 / 3, 0.01)


def random_arrays(spec: ModelSpec, seed: int = 0) -> Arrays:
    """Values of the right types, all different."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for tensor in spec:
        if tensor.kind == "counter":
            arrays[tensor.name] = np.array(rng.integers(100), np.int64)
        else:
            values = rng.normal(size=tensor.shape).astype(np.float32)
            arrays[tensor.name] = np.abs(values) + 0.1 if tensor.kind == "running_var" else values
    return arrays


def play_round(
    algorithm: Algorithm,
    number: int,
    devices: Sequence[str],
    *,
    fleet: Mapping[str, float],
    noise: float,
) -> None:
    """One round in which a device "trains" by adding its own noise.

    Args:
        devices: hex names of those that answer; fleet: everyone's ratio.
        noise: at most, on each value.
    """
    algorithm.begin_round(number)
    updates = []
    for device in devices:
        sent = algorithm.send(device, fleet[device])
        rng = np.random.default_rng([number, int(device, 16)])
        trained = {
            name: np.asarray(array + rng.uniform(0, noise, array.shape), array.dtype)
            for name, array in sent.arrays.items()
        }
        updates.append(Update(device, trained, sent.channels, weight=int(device, 16)))
    algorithm.end_round(updates)
