"""Labels for unlabelled windows from their neighbours: label propagation on the device's own data.

A model that meets a sensor mounted another way is sure and wrong. Which windows of one wearer look
alike does not depend on the model: along a graph of nearest neighbours the few labels reach most of
the others (Zhou et al., "Learning with Local and Global Consistency", NeurIPS 2003; for
pseudo-labels: Iscen et al., CVPR 2019).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 10
REACH = 0.9  # alpha: how much of a window's label comes from its neighbours
STEPS = 50  # of the iteration: 0.9^50 is half a percent
MOST = 4096  # windows in the graph: its time grows with their square
MOST_BYTES = 64 << 20  # of its arrays, where the caller has no limit: there may be 65,536 classes
BLOCK = 32  # rows of the distances held at a time


def never() -> bool:
    """Nothing asks it to stop."""
    return False


def propagated(
    windows: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    most: int = MOST,
    should_stop: Callable[[], bool] = never,
) -> NDArray[np.float32]:
    """Probabilities [n, classes] of every window's class.

    Even where no label leads; of more than `most` windows, those left out are even too.

    Args:
        windows: [n, features], standardised: all features count alike.
        labels: [n]; negative: none.
        most: windows in the graph.
        should_stop: asked every few milliseconds; once it says so, all are even.
    """
    found = np.full((len(windows), classes), 1 / classes, np.float32)
    known, unknown = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    known = _thinned(known, most // 2)
    used = np.concatenate([known, _thinned(unknown, most - len(known))])
    if len(used) < 2 or not len(known):
        return found
    given = np.zeros((len(used), classes))
    given[np.arange(len(known)), labels[known]] = 1.0
    graph = _graph(windows[used].astype(np.float64), should_stop)
    if graph is None:
        return found
    rows, columns, edges = _normalised(*graph, len(used))
    reached = given
    for _ in range(STEPS):
        if should_stop():
            return found
        moved = [np.bincount(rows, edges * column[columns], len(used)) for column in reached.T]
        reached = REACH * np.stack(moved, axis=1) + (1 - REACH) * given
    total = reached.sum(axis=1, keepdims=True)
    even = np.full_like(reached, 1 / classes)
    found[used] = np.divide(reached, total, out=even, where=total > 1e-9)
    return found


def windows_within(most_bytes: int, features: int, classes: int) -> int:
    """How many windows' graph takes at most so many bytes beside the windows themselves and what
    `propagated` gives; at most `MOST`."""
    each = 12 * features + 48 * classes + 200 * NEIGHBOURS  # measured, at the peak
    return max(0, min(MOST, most_bytes // each))


class Propagation:
    """`propagated`, which gives what it gave before for the same windows and labels: they stay from
    round to round of a chunk.

    Args:
        most_bytes: of remembered results; the last one stays in any case.
    """

    def __init__(self, most_bytes: int = 0) -> None:
        self.most_bytes = most_bytes
        self._known: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()

    def __call__(
        self,
        windows: NDArray[np.float32],
        labels: NDArray[np.int64],
        classes: int,
        most: int = MOST,
        should_stop: Callable[[], bool] = never,
    ) -> NDArray[np.float32]:
        """As `propagated`. Do not change what it gives."""
        digest = hashlib.sha256(f"{windows.shape} {classes} {most} ".encode())
        for array in (windows, labels):
            digest.update(np.ascontiguousarray(array).data)
        key = digest.digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if not self.most_bytes:
            self._known.clear()  # before the next one takes its room
        stopped = False

        def ask() -> bool:
            nonlocal stopped
            stopped = stopped or should_stop()
            return stopped

        found = propagated(windows, labels, classes, most, ask)
        if not stopped:
            self._known[key] = found
        while len(self._known) > 1 and self._held() > self.most_bytes:
            self._known.popitem(last=False)
        return found

    def _held(self) -> int:
        return sum(found.nbytes for found in self._known.values())


def _thinned(positions: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most so many, evenly spread over time."""
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).astype(np.intp)]


def _normalised(
    rows: NDArray[np.intp], columns: NDArray[np.intp], similar: NDArray[np.float64], n: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """D^-1/2 W D^-1/2."""
    scale = 1 / np.sqrt(np.maximum(np.bincount(rows, similar, n), 1e-300))
    return rows, columns, similar * scale[rows] * scale[columns]


def _graph(
    points: NDArray[np.float64], should_stop: Callable[[], bool]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]] | None:
    """Edges (from, to, similarity), each in both directions, to the nearest neighbours; None where
    it was to stop."""
    n = len(points)
    k = min(NEIGHBOURS, n - 1)
    squares = (points**2).sum(axis=1)
    nearest = np.empty((n, k), np.intp)
    distances = np.empty((n, k))
    for first in range(0, n, BLOCK):
        if should_stop():
            return None
        block = slice(first, min(first + BLOCK, n))
        d = np.maximum(squares[block, None] + squares - 2 * points[block] @ points.T, 0.0)
        d[np.arange(len(d)), np.arange(first, block.stop)] = np.inf
        part = np.argpartition(d, k - 1, axis=1)[:, :k]
        nearest[block] = part
        distances[block] = np.take_along_axis(d, part, axis=1)
    similar = np.exp(-distances / max(distances.mean(), 1e-12)).ravel()
    rows, columns = np.repeat(np.arange(n), k), nearest.ravel()
    pairs = np.concatenate([rows * n + columns, columns * n + rows])
    keys, first_seen = np.unique(pairs, return_index=True)
    return keys // n, keys % n, np.concatenate([similar, similar])[first_seen]
