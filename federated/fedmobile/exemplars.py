"""A few windows of each class kept beyond their chunk: off unless a federation asks for it.

Herding (iCaRL, Rebuffi et al., CVPR 2017, algorithm 4): the windows whose features' mean stays
closest to the mean of their class, best first, so that a shorter list is a prefix of a longer one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

ROUNDING = 1e-9
"""Distances so little apart are equal: of two windows of a class each is as good as the other, and
every processor must choose the same one."""


def select_exemplars(
    features: NDArray[np.float32], labels: NDArray[np.int64], per_class: int
) -> NDArray[np.intp]:
    """Positions of at most `per_class` windows of each class, class by class, best first, the
    earliest of equals.

    Args:
        features: [n, width], as `Trainer.features` gives; scaled to length 1 here.
        labels: int64 [n]; -1, unlabelled, is never chosen.
        per_class: m; 0 gives none.

    Raises:
        UsageError: lengths differ, a feature is not finite, or `per_class` is negative.
    """
    if per_class < 0 or features.ndim != 2 or len(features) != len(labels):
        raise UsageError(
            f"exemplars: features {features.shape}, {len(labels)} labels, {per_class} per class"
        )
    if not np.isfinite(features).all():
        raise UsageError("exemplars: a feature is not finite")
    unit = features.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    chosen = [np.zeros(0, np.intp)]
    for label in np.unique(labels[labels >= 0]):
        of_class = np.flatnonzero(labels == label)
        chosen.append(of_class[_herd(unit[of_class], per_class)])
    return np.concatenate(chosen)


def _herd(features: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The greedy order for one class."""
    mean = features.mean(axis=0)
    taken, total = [], np.zeros_like(mean)
    free = np.ones(len(features), bool)
    for k in range(1, min(count, len(features)) + 1):
        distance = np.linalg.norm(mean - (total + features) / k, axis=1)
        distance[~free] = np.inf
        best = int(np.argmax(distance <= distance.min() + ROUNDING))
        taken.append(best)
        free[best] = False
        total += features[best]
    return np.array(taken, np.intp)
