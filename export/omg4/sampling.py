"""Gaussian sampling: keep the share of splats with the highest SD score (OMG4, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError


def keep_best(scores: NDArray[np.float64], share: float) -> NDArray[np.intp]:
    """Indices of the best of [n] scores, ascending; at least one where there is one.

    Of equal scores the lowest indices.

    Raises:
        UsageError: a score that is not finite, or a share outside 0 to 1.
    """
    if not 0 < share <= 1:
        raise UsageError(f"a share of {share} is to be kept; expected more than 0, at most 1")
    if not np.isfinite(scores).all():
        raise UsageError("a score is not finite: the model or a view is damaged; check them")
    count = min(len(scores), max(1, round(share * len(scores))))
    return np.sort(np.argsort(-scores, kind="stable")[:count])
