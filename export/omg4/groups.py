"""Which splats look alike: neighbours in a grid of space and time (OMG4, section 3).

    similarity = -|dx|^2 - 4 |d colour|^2       x by the scene's range, colour by its own

Merged by moments, the drift in one t_sigma counts as a place does, and a pair that is shown for a
share of the scene's time has that share of its distance: it errs for so much shorter.

In each cell a pair is alike when it is over both a fixed similarity and a quantile of the cell's
pairs. The paper lets a splat be in several groups, whose representatives then all take its colour;
here each splat is in one group at most, that of the lowest index which it is like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.settings import CompressionSettings
from penstock.loaders.splats.model import SplatModel

Doubles = NDArray[np.float64]
Indices = NDArray[np.intp]

COLOUR = 2.0  # distance of a colour against one of a place; 4 when squared
MOST_IN_CELL = 256  # of a fuller cell's members so many at a time, in the order of their places
EDGE = 0.1  # percent at each end that the scene's range leaves out
SIGMA_RATIO = 2.0  # of t_sigmas in a group that is merged by moments


@dataclass(frozen=True)
class Groups:
    """Splats that become one.

    Attributes:
        members: indices, group after group, ascending in each; none twice.
        starts: [g + 1], where each group's members begin, and their number.
    """

    members: Indices
    starts: Indices

    @property
    def count(self) -> int:
        return len(self.starts) - 1

    def sums(self, values: NDArray[np.floating]) -> Doubles:
        """Of values [m, ...] of the members: each group's sum [g, ...]."""
        if not self.count:
            return np.zeros((0, *values.shape[1:]))
        return np.add.reduceat(np.asarray(values, np.float64), self.starts[:-1], axis=0)

    def spread(self, values: NDArray[np.floating]) -> Doubles:
        """Of values [g, ...] of the groups: for each of its members [m, ...]."""
        return np.repeat(np.asarray(values, np.float64), np.diff(self.starts), axis=0)

    def first(self) -> Indices:
        """The lowest index of each group [g]: its representative."""
        return self.members[self.starts[:-1]]


def find_groups(model: SplatModel, settings: CompressionSettings, number: int = 0) -> Groups:
    """Groups of two or more.

    Args:
        number: of the round, from 0; cells grow from one to the next.
    """
    if model.count < 2:
        return Groups(np.zeros(0, np.intp), np.zeros(1, np.intp))
    places = _by_range(model.means)
    features = np.concatenate([places, COLOUR * _by_extremes(model.sh[:, 0])], axis=1)
    moments = settings.merge_shape == "moments"
    sigmas = None
    motion = model.motion
    if motion is not None and moments:
        drift = motion.velocities * motion.t_sigmas[:, None]
        features = np.concatenate([features, drift / _range(model.means)], axis=1)
        sigmas = motion.t_sigmas.astype(np.float64)
    span = 1.0 if motion is None else max(motion.end - motion.start, 1e-6)
    found: list[Indices] = []
    for cell in _cells(model, settings, number):
        times = None if sigmas is None else sigmas[cell] / span
        found += _groups_of(features[cell], times, cell, settings)
    lengths = np.array([len(one) for one in found], np.intp)
    members = np.concatenate(found) if found else np.zeros(0, np.intp)
    return Groups(members, np.concatenate([[0], np.cumsum(lengths)]).astype(np.intp))


def _groups_of(
    features: Doubles, sigmas: Doubles | None, cell: Indices, settings: CompressionSettings
) -> list[Indices]:
    """Groups among the m splats of a cell, by their features [m, f]; t_sigmas over the scene's
    duration, where they count, [m]."""
    similar = -np.square(features[:, None] - features).sum(axis=2)  # [m, m]
    if sigmas is not None:
        shown = np.minimum(np.sqrt(2 * np.pi) * sigmas, 1)
        similar *= np.maximum(shown[:, None], shown)
    pairs = similar[_above_diagonal(len(cell))]
    if pairs.max() < settings.merge_similarity:
        return []
    alike = similar >= max(settings.merge_similarity, _quantile(pairs, settings.merge_quantile))
    if sigmas is not None:
        logs = np.log(sigmas)
        alike &= np.abs(logs[:, None] - logs) <= np.log(SIGMA_RATIO)
    free = np.ones(len(cell), np.bool_)
    found = []
    for i in np.flatnonzero(alike.sum(axis=1) > 1).tolist():
        if not free[i]:
            continue
        group = i + np.flatnonzero(alike[i, i:] & free[i:])
        if len(group) > 1:
            free[group] = False
            found.append(cell[group])
    return found


@lru_cache(maxsize=32)
def _above_diagonal(size: int) -> tuple[Indices, Indices]:
    """Rows and columns of each pair once; a scene has many cells and few sizes of them."""
    rows, columns = np.triu_indices(size, 1)
    return rows, columns


def _quantile(values: Doubles, share: float) -> float:
    """As np.quantile, which takes longer than all else that is done for a small cell."""
    ordered = np.sort(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    return low + (place - below) * (high - low)


def _cells(model: SplatModel, settings: CompressionSettings, number: int) -> Iterator[Indices]:
    """Indices of the splats of each cell with two or more, ascending."""
    grown = settings.merge_growth**number
    side = float(_range(model.means).max()) * settings.merge_cell * grown
    # Far outliers may lie any number of cells away: kept within what an integer holds.
    places = [_whole(model.means[:, axis].astype(np.float64) / side) for axis in range(3)]
    motion = model.motion
    if motion is not None and motion.end > motion.start:
        span = (motion.end - motion.start) * settings.merge_span * grown
        places.append(_whole((motion.t_centers.astype(np.float64) - motion.start) / span))
    keys = np.stack(places)
    order = np.lexsort(keys)
    ordered = keys[:, order]
    edges = np.flatnonzero((ordered[:, 1:] != ordered[:, :-1]).any(axis=0)) + 1
    bounds = np.concatenate([[0], edges, [len(order)]])
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        cell = np.sort(order[begin:end])
        if len(cell) > MOST_IN_CELL:
            yield from _pieces(model, cell)
        elif len(cell) > 1:
            yield cell


def _pieces(model: SplatModel, cell: Indices) -> Iterator[Indices]:
    """A full cell in runs along its longest side."""
    means = model.means[cell]
    axis = int(np.argmax(np.ptp(means, axis=0)))
    order = cell[np.argsort(means[:, axis], kind="stable")]
    for begin in range(0, len(order), MOST_IN_CELL):
        piece = np.sort(order[begin : begin + MOST_IN_CELL])
        if len(piece) > 1:
            yield piece


def _whole(values: Doubles) -> Indices:
    return np.clip(np.floor(values), -(2.0**40), 2.0**40).astype(np.intp)


def _by_range(means: NDArray[np.float32]) -> Doubles:
    return means.astype(np.float64) / _range(means)


def _range(means: NDArray[np.float32]) -> Doubles:
    """The scene's size along each axis [3], without its outliers; never 0."""
    low, high = np.percentile(means.astype(np.float64), [EDGE, 100 - EDGE], axis=0)
    size = high - low
    widest = float(size.max())
    # A flat scene has the other sides' range: else what is next to nothing there would count.
    result: Doubles = np.where(size > 1e-6 * widest, size, widest if widest > 0 else 1.0)
    return result


def _by_extremes(colours: NDArray[np.float32]) -> Doubles:
    """Each channel [n, 3] from its least to its greatest as 0 to 1."""
    values = colours.astype(np.float64)
    low, size = values.min(axis=0), np.ptp(values, axis=0)
    result: Doubles = (values - low) / np.where(size > 0, size, 1)
    return result
