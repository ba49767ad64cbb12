"""Accuracy, macro-F1 over the classes that are present, and forgetting over chunks of time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

ABSENT = -1.0  # F1 of a class that no label names


def confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Counts [true class, predicted class].

    Raises:
        UsageError: lengths differ, or a class is out of range.
    """
    if labels.shape != predicted.shape or labels.ndim != 1:
        raise UsageError(f"{labels.shape} labels but {predicted.shape} predictions")
    for name, values in (("label", labels), ("prediction", predicted)):
        if len(values) and not 0 <= values.min() <= values.max() < classes:
            raise UsageError(f"a {name} is outside of 0 to {classes - 1}")
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def accuracy(counts: NDArray[np.int64]) -> float:
    """Share of right predictions; 0 without any."""
    total = counts.sum()
    return float(np.trace(counts) / total) if total else 0.0


def per_class_f1(counts: NDArray[np.int64]) -> tuple[float, ...]:
    """2 TP / (2 TP + FP + FN) of each class; -1 for a class without a label."""
    right = np.diag(counts)
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)
    return tuple(
        float(2 * r / (t + p)) if t else ABSENT
        for r, t, p in zip(right, true, predicted, strict=True)
    )


def macro_f1(counts: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that at least one label names; 0 without any.

    A class that is only predicted has no F1 of its own; it costs the classes it was taken for.
    """
    present = [f1 for f1 in per_class_f1(counts) if f1 != ABSENT]
    return float(np.mean(present)) if present else 0.0


def forgetting(scores: Sequence[Sequence[float]]) -> float:
    """Mean over past chunks of the best score it ever had minus its score now.

    Chaudhry et al., ECCV 2018 (section 3): the maximum is over the ends of chunks before the last,
    from the one in which the chunk was learned on. Negative: later chunks helped.

    Args:
        scores: [end of chunk t][chunk j], j <= t known; row t has at least t + 1 entries.

    Returns:
        0 with fewer than two chunks.

    Raises:
        UsageError: a row is too short.
    """
    for end, row in enumerate(scores):
        if len(row) < end + 1:
            raise UsageError(f"scores: row {end} has {len(row)} entries, expected {end + 1}")
    last = len(scores) - 1
    if last < 1:
        return 0.0
    lost = [max(scores[t][j] for t in range(j, last)) - scores[last][j] for j in range(last)]
    return float(np.mean(lost))


def mean_after_each_chunk(scores: Sequence[Sequence[float]]) -> float:
    """Mean over the ends of chunks of the mean score on all chunks seen so far."""
    return float(np.mean([np.mean(row[: end + 1]) for end, row in enumerate(scores)]))
