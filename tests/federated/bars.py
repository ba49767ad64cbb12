"""A picture task that a small model learns in seconds: bright bars on a noisy ground."""

from __future__ import annotations

import numpy as np

from penstock.federated.arrays import Arrays
from penstock.federated.models import ModelOptions, build_module
from penstock.federated.public_training import PublicSet
from penstock.federated.training.data import TrainingData

BARS = ModelOptions("image-cnn", (1, 8, 8), 3, (5, 7))


def bars(count: int, seed: int) -> TrainingData:
    """Images [count, 1, 8, 8] with a bar on top, in the middle or below."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    inputs = rng.normal(size=(count, 1, 8, 8)).astype(np.float32)
    for image, label in zip(inputs, labels, strict=True):
        image[0, 1 + 2 * label : 3 + 2 * label] += 2
    return TrainingData(inputs, labels.astype(np.int64))


def public_bars() -> PublicSet:
    """96 to train on, 48 to choose by."""
    return PublicSet(bars(96, 1), bars(48, 2))


def initial_arrays(seed: int = 0) -> Arrays:
    """The same for the same seed."""
    import torch

    torch.manual_seed(seed)
    return {name: t.numpy().copy() for name, t in build_module(BARS).state_dict().items()}
