"""BatchNorm's statistics after filters: taken anew from the public samples, or as released.

The release cuts them off for a sub-model and fills up with mean 0 and variance 1 for a full one.
They then belong to other weights than they stand beside.
"""

from __future__ import annotations

from penstock.federated.arrays import Arrays
from penstock.federated.fedconv.profiles import Profile
from penstock.federated.public_training import PublicTrainer, Score, to_tensors


def with_statistics(
    arrays: Arrays, ratio: float, profile: Profile, trainer: PublicTrainer
) -> Arrays:
    """The model with the statistics that the profile wants."""
    return trainer.recompute_norm(arrays, ratio) if profile.recompute_norm else arrays


def settled_score(arrays: Arrays, ratio: float, profile: Profile, trainer: PublicTrainer) -> Score:
    """On the hold-out: by running statistics where they were recomputed, else by the batch's."""
    return trainer.score(to_tensors(arrays), ratio, by_batch=not profile.recompute_norm)
