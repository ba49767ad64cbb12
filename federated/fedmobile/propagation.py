"""Labels for unlabelled windows from their neighbours: label propagation on the device's own data.

A model that meets a sensor mounted another way is sure and wrong. Which windows of one wearer look
alike does not depend on the model: along a graph of nearest neighbours the few labels reach most of
the others (Zhou et al., "Learning with Local and Global Consistency", NeurIPS 2003; for
pseudo-labels: Iscen et al., CVPR 2019).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 10
REACH = 0.9  # alpha: how much of a window's label comes from its neighbours
STEPS = 50  # of the iteration: 0.9^50 is half a percent
MOST = 4096  # windows in the graph: its time grows with their square
BLOCK = 128  # rows of the distances held at a time


def propagated(
    windows: NDArray[np.float32], labels: NDArray[np.int64], classes: int
) -> NDArray[np.float32]:
    """Probabilities [n, classes] of every window's class.

    Even where no label leads; of more than `MOST` windows, those left out are even too.

    Args:
        windows: [n, features], standardised: all features count alike.
        labels: [n]; negative: none.
    """
    found = np.full((len(windows), classes), 1 / classes, np.float32)
    known, unknown = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    known = _thinned(known, MOST // 2)
    used = np.concatenate([known, _thinned(unknown, MOST - len(known))])
    if len(used) < 2 or not len(known):
        return found
    given = np.zeros((len(used), classes))
    given[np.arange(len(known)), labels[known]] = 1.0
    rows, columns, edges = _normalised(*_graph(windows[used].astype(np.float64)), len(used))
    reached = given
    for _ in range(STEPS):
        moved = [np.bincount(rows, edges * column[columns], len(used)) for column in reached.T]
        reached = REACH * np.stack(moved, axis=1) + (1 - REACH) * given
    total = reached.sum(axis=1, keepdims=True)
    even = np.full_like(reached, 1 / classes)
    found[used] = np.divide(reached, total, out=even, where=total > 1e-9)
    return found


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
    points: NDArray[np.float64],
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Edges (from, to, similarity), each in both directions, to the nearest neighbours."""
    n = len(points)
    k = min(NEIGHBOURS, n - 1)
    squares = (points**2).sum(axis=1)
    nearest = np.empty((n, k), np.intp)
    distances = np.empty((n, k))
    for first in range(0, n, BLOCK):
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
