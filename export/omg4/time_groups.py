"""Cuts the splats of a moving scene into groups that are read and decoded alone.

A splat that is seen for long would be in every group of a plain cut of time. Here splats of like
durations go together: those seen for over half of the scene are one group, which is always needed;
those seen for between a quarter and half of it are cut along time into four, and so on. At any time
a few groups of each kind are needed, and no splat is in two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.model import SEEN_SIGMAS

Doubles = NDArray[np.float64]

FINEST = 10  # durations under 2^-10 of the scene are one kind
MARGIN = 1e-4  # of a splat's duration, on each side, for another's rounding
MARGIN_SECONDS = 1e-6


def visible_spans(
    t_centers: NDArray[np.floating], t_sigmas: NDArray[np.floating]
) -> tuple[Doubles, Doubles]:
    """When splats begin and cease to be drawn ([n], [n]), seconds, and a little more."""
    centers = np.asarray(t_centers, np.float64)
    reach = np.asarray(t_sigmas, np.float64) * SEEN_SIGMAS
    reach = reach * (1 + MARGIN) + MARGIN_SECONDS
    return centers - reach, centers + reach


def time_groups(
    begins: Doubles, ends: Doubles, start: float, end: float, least: int
) -> list[NDArray[np.int64]]:
    """Indices of the splats of each group, the group that is always needed first.

    Where there is none, the largest is first: what the others' coding begins with.

    Args:
        begins, ends: [n], when splats are seen.
        start, end: of the scene, seconds.
        least: splats of a group, where there are enough.
    """
    if len(begins) == 0:
        return []
    first, last = np.clip(begins, start, end), np.clip(ends, start, end)
    shares = (last - first) / (end - start) if end > start else np.ones(len(begins))
    kinds = np.clip(np.floor(-np.log2(np.maximum(shares, 1e-9))), 0, FINEST).astype(np.int64)
    always: list[NDArray[np.int64]] = []
    others: list[NDArray[np.int64]] = []
    carried = np.zeros(0, np.int64)
    for kind in range(FINEST, -1, -1):
        members = np.concatenate([carried, np.flatnonzero(kinds == kind)])
        carried = np.zeros(0, np.int64)
        if kind == 0 and len(members):
            always.append(members)
        elif len(members) < max(least, 1):
            carried = members  # too few of their own: with those that are seen longer
        else:
            runs = min(2 << kind, len(members) // max(least, 1))
            middle = (first + last)[members]
            ordered = members[np.argsort(middle, kind="stable")]
            others += np.array_split(ordered, max(runs, 1))
    if not always and others:
        largest = max(range(len(others)), key=lambda k: len(others[k]))
        always.append(others.pop(largest))
    return always + others
