"""Puts neurons that are read together next to each other on storage, so that their reads merge.

After Ripple (arXiv 2410.19274): a path through all neurons that is as heavy as possible in
co-occurrences, built greedily from the heaviest links. What counts here is not activity but misses
of a window: hot neurons never leave the window and are never read again, whoever they fire with.

The number of reads is misses - (adjacent pairs that miss together), so a link's weight is simply
how often both miss at the same token. Only each neuron's strongest links are looked at; the
co-occurrence matrix is made in blocks and never whole. Loose ends are joined in order of heat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LINKS = 24  # candidates a neuron
BLOCK_BYTES = 64 << 20  # of co-occurrences at a time


def neuron_order(missed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Position on storage -> neuron.

    Args:
        missed: (tokens, neurons) which neurons were read at each token.
    """
    neurons = missed.shape[1]
    first, second = _links(missed)
    ends: list[list[int]] = [[] for _ in range(neurons)]  # neighbours on the path, at most two
    group = np.arange(neurons)  # union-find: no link may close a ring
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        if len(ends[a]) == 2 or len(ends[b]) == 2:
            continue
        root_a, root_b = _root(group, a), _root(group, b)
        if root_a != root_b:
            group[root_a] = root_b
            ends[a].append(b)
            ends[b].append(a)
    return _walk(ends, missed.sum(0))


def _links(missed: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of neurons, heaviest first."""
    seen = missed.astype(np.float32)
    neurons = seen.shape[1]
    keep = min(LINKS, neurons - 1)
    step = max(1, BLOCK_BYTES // (4 * neurons))
    pairs: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float32]] = []
    for start in range(0, neurons, step):
        together = seen[:, start : start + step].T @ seen  # (block, neurons)
        here = np.arange(start, min(start + step, neurons))
        together[np.arange(len(here)), here] = -1.0
        best = (
            np.argpartition(-together, keep - 1, axis=1)[:, :keep] if keep else here[:, None][:, :0]
        )
        pairs.append(np.stack([np.repeat(here, keep), best.ravel()]))
        weights.append(np.take_along_axis(together, best, 1).ravel())
    pair, weight = np.concatenate(pairs, 1), np.concatenate(weights)
    found = weight > 0
    pair, weight = np.sort(pair[:, found], 0), weight[found]
    order = np.argsort(-weight, kind="stable")
    return pair[0, order], pair[1, order]


def _root(group: NDArray[np.int64], i: int) -> int:
    while group[i] != i:
        group[i] = group[group[i]]
        i = int(group[i])
    return i


def _walk(ends: list[list[int]], heat: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fragments one after the other, those with the most misses per neuron first."""
    fragments: list[list[int]] = []
    seen = np.zeros(len(ends), bool)
    for start in range(len(ends)):
        if seen[start] or len(ends[start]) == 2:
            continue
        fragment, before, at = [start], -1, start
        while True:
            seen[at] = True
            following = [n for n in ends[at] if n != before]
            if not following:
                break
            before, at = at, following[0]
            fragment.append(at)
        fragments.append(fragment)
    fragments.sort(key=lambda f: -float(heat[f].mean()))
    return np.array([neuron for fragment in fragments for neuron in fragment], np.int64)
