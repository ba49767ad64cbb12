"""Gaussian merging: each group of look-alikes becomes one splat (OMG4, section 3).

The new splat's mean, constant colour and other harmonics are weighted means of its members', each
with weights of its own: sigmoids of trained logits, normalised in the group.

    representative   the paper's: weights start equal; opacity, shape, velocity and time are those
                     of the member with the lowest index
    moments          ours: weights start as shares of mass; the rest is of the whole group
                     (moments.py), so that a surface keeps no holes
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.adam import Adam
from penstock.export.omg4.drawing import ModelGradients
from penstock.export.omg4.groups import Doubles, Groups, Indices, find_groups
from penstock.export.omg4.moments import masses, merge_moments
from penstock.export.omg4.rasteriser import Rasteriser
from penstock.export.omg4.refinement import batches, better_of, gradients_of
from penstock.export.omg4.settings import CompressionSettings
from penstock.export.omg4.views import Truth
from penstock.export.report import Progress, ProgressCallback
from penstock.loaders.splats.model import Floats, SplatModel, concatenate, select

RATE = 0.01  # of the logits, the paper's
PLACE, COLOUR, REST = range(3)  # columns of the logits


def merge(
    model: SplatModel,
    truth: Truth,
    rasteriser: Rasteriser,
    settings: CompressionSettings,
    *,
    number: int = 0,
    progress: ProgressCallback | None = None,
) -> SplatModel:
    """The model with its groups merged; the model itself where nothing looks alike.

    Args:
        number: of the round, from 0.

    Raises:
        FormatError, StorageError, UsageError: a view's image cannot be had.
    """
    groups = find_groups(model, settings, number)
    if not groups.count:
        return model
    merging = Merging(model, groups, settings.merge_shape)
    before = merging.model()
    optimizer = Adam(merging.logits, RATE * settings.rates, rasteriser.loops)
    steps = settings.merge_steps
    for step, chosen in enumerate(
        batches(len(truth), settings.batch, steps, settings.seed + number + 1)
    ):
        total = np.zeros_like(merging.logits)
        current = merging.model()
        for found in gradients_of(current, chosen, truth, rasteriser, settings):
            total += merging.by_logits(current, found)
        rows = np.flatnonzero(total.any(axis=1))
        optimizer.step(rows, total)
        if progress is not None:
            progress(Progress(f"merging {number + 1}", step + 1, steps, "steps"))
    if steps == 0:
        return before
    return better_of(before, merging.model(), truth, rasteriser, settings)


class Merging:
    """A model whose groups are drawn merged, with weights that can be trained.

    Attributes:
        logits: [m, 3] of the groups' members: of the place, the constant colour, the rest.
    """

    def __init__(self, model: SplatModel, groups: Groups, shape: str) -> None:
        single = np.ones(model.count, np.bool_)
        single[groups.members] = False
        self.groups = groups
        self.singles = select(model, np.flatnonzero(single))
        self.parts = select(model, groups.members)
        if shape == "moments":
            self.base = merge_moments(model, groups)
            start = _logits(masses(self.parts), groups)
        else:
            self.base = select(model, groups.first())
            start = np.zeros(len(groups.members))
        self.logits: Floats = np.repeat(start[:, None], 3, axis=1).astype(np.float32)

    def weights(self) -> Doubles:
        """[m, 3], 1 in each group."""
        sigmoids = _sigmoid(self.logits)
        return sigmoids / self.groups.spread(self.groups.sums(sigmoids))

    def model(self) -> SplatModel:
        """Those that are alone, then one for each group."""
        weights = self.weights()
        means = self.groups.sums(weights[:, PLACE, None] * self.parts.means)
        sh = self.groups.sums(_of_harmonics(weights, self.parts.sh) * self.parts.sh)
        merged = replace(self.base, means=means.astype(np.float32), sh=sh.astype(np.float32))
        return concatenate([self.singles, merged])

    def by_logits(self, model: SplatModel, found: ModelGradients) -> Floats:
        """The gradient [m, 3] by the logits, of that by the model's splats.

        With w = s / sum s, s the sigmoids, and M = sum w x: dL/dlogit = s' / sum s (x - M) g.
        """
        alone = self.singles.count
        merged = found.active >= alone
        groups: Indices = found.active[merged] - alone
        by_mean = np.zeros((self.groups.count, 3))
        by_sh = np.zeros((self.groups.count, *self.parts.sh.shape[1:]))
        by_mean[groups], by_sh[groups] = found.means[merged], found.sh[merged]
        spread = self.groups.spread
        place = (self.parts.means - spread(model.means[alone:])) * spread(by_mean)
        colours = (self.parts.sh - spread(model.sh[alone:])) * spread(by_sh)
        products = np.stack(
            [
                place.sum(axis=1),
                colours[:, 0].sum(axis=1),
                colours[:, 1:].sum(axis=(1, 2)),
            ],
            axis=1,
        )
        sigmoids = _sigmoid(self.logits)
        slope = sigmoids * (1 - sigmoids) / spread(self.groups.sums(sigmoids))
        result: Floats = (slope * products).astype(np.float32)
        return result


def _of_harmonics(weights: Doubles, sh: Floats) -> Doubles:
    """The weights [m, 3] as those of harmonics [m, k, 1]: the first has its own."""
    result = np.repeat(weights[:, REST, None, None], sh.shape[1], axis=1)
    result[:, 0, 0] = weights[:, COLOUR]
    return result


def _logits(mass: Doubles, groups: Groups) -> Doubles:
    """[m] whose normalised sigmoids are the shares of mass; the heaviest has a sigmoid of 0.9."""
    if not len(mass):
        return mass
    heaviest = np.maximum.reduceat(mass, groups.starts[:-1])
    share = np.maximum(mass / groups.spread(np.maximum(heaviest, 1e-300)), 1e-4) * 0.9
    result: Doubles = np.log(share / (1 - share))
    return result


def _sigmoid(logits: NDArray[np.floating]) -> Doubles:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))
