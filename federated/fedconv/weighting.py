"""Aggregation weights: one number for every value of every device's dilated model.

    theta = sum over devices c of  share_c * weight_c * theta_c

all element by element. `share_c` is fixed by who is there in this round and sums to 1; `weight_c`
is trained on the public samples, kept for each device, and 1 to begin with. (The release starts
from N(0, 1), and matches weights to devices by order of arrival.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from penstock.federated.aggregation import Update
from penstock.federated.arrays import MOST_COUNT, Arrays
from penstock.federated.fedconv.profiles import Profile
from penstock.federated.submodels import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


def new_weights(spec: ModelSpec, profile: Profile, rng: np.random.Generator) -> Arrays:
    """One device's weights before any training."""
    trained = {t.name: t.shape for t in spec if t.averaged and not t.kind.startswith("running")}
    if profile.weights == "normal":
        return {n: rng.normal(size=shape).astype(np.float32) for n, shape in trained.items()}
    return {name: np.ones(shape, np.float32) for name, shape in trained.items()}


def shares(spec: ModelSpec, updates: Sequence[Update], profile: Profile) -> dict[str, Arrays]:
    """Of each device, of each tensor's values: its part of the mean.

    "coverage": by examples among the devices whose sub-model holds the value, which is HeteroFL's
    mean; where none holds it, and else everywhere: by examples among all.

    Args:
        updates: one or more.
    """
    total = sum(update.weight for update in updates)
    result: dict[str, Arrays] = {}
    covered: dict[str, Arrays] = {}
    for update in updates:
        masks: Arrays = {}
        for tensor in spec:
            if tensor.averaged:
                masks[tensor.name] = np.zeros(tensor.shape, np.float64)
                masks[tensor.name][np.ix_(*spec.index(tensor, update.channels))] = update.weight
        covered[update.device] = masks
    averaged = [tensor for tensor in spec if tensor.averaged]
    held_by_all = {t.name: sum(masks[t.name] for masks in covered.values()) for t in averaged}
    for update in updates:
        parts: Arrays = {}
        for tensor in averaged:
            # BatchNorm's statistics are a mean of measurements: never of what nobody measured.
            if profile.weights == "coverage" or tensor.kind.startswith("running"):
                held = held_by_all[tensor.name]
                own = covered[update.device][tensor.name]
                even = np.full(tensor.shape, update.weight / total)
                part = np.divide(own, held, out=even, where=held > 0)
            else:
                part = np.full(tensor.shape, update.weight / total)
            parts[tensor.name] = part.astype(np.float32)
        result[update.device] = parts
    return result


def combine(
    spec: ModelSpec,
    models: Mapping[str, Tensor],
    parts: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The weighted sum, differentiable in the weights.

    Args:
        models, parts, weights: tensors [devices, *shape] by name; weights only of what is trained.
    """
    result: dict[str, Tensor] = {}
    for tensor in spec:
        stack = models[tensor.name]
        if not tensor.averaged:
            result[tensor.name] = stack.amax(dim=0).clamp_max(MOST_COUNT // 2)
            continue
        share = parts[tensor.name]
        if tensor.name in weights:
            share = share * weights[tensor.name]
        if share.shape != stack.shape:
            raise AssertionError(f"{tensor.name}: {share.shape} shares of {stack.shape}")
        result[tensor.name] = (share * stack).sum(dim=0)
    return result
