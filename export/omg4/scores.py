"""How much each splat matters to the pictures: OMG4's spatial and temporal scores.

    space = sum over views of |dL / d(mean on the screen)|
    time  = sum over views of dL / d(t_center), signed in the paper

Where the truth is the model itself the loss has no gradient. Then L is a sum of the picture's
values with random signs, as the L1 loss of any small error is: the squared gradient is, on average,
how far the picture moves with the splat (Hutchinson 1989).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.drawing import Drawing
from penstock.export.omg4.losses import loss
from penstock.export.omg4.rasteriser import Rasteriser
from penstock.export.omg4.settings import CompressionSettings
from penstock.export.omg4.views import Truth
from penstock.export.report import Progress, ProgressCallback
from penstock.loaders.splats.model import Floats, SplatModel

Doubles = NDArray[np.float64]

MOST_VIEWS = 256  # that are looked at


@dataclass(frozen=True)
class Scores:
    """Of n splats, sums over the views.

    Attributes:
        space: [n], 0 or more.
        time: [n]; of signed gradients it may be negative. None of a static model.
        weight: [n], pixels: what share of each the splat had, 0 or more.
    """

    space: Doubles
    time: Doubles | None
    weight: Doubles

    def of(self, indices: NDArray[np.integer]) -> Scores:
        """Those of some splats."""
        time = None if self.time is None else self.time[indices]
        return Scores(self.space[indices], time, self.weight[indices])


def score(
    model: SplatModel,
    truth: Truth,
    rasteriser: Rasteriser,
    settings: CompressionSettings,
    progress: ProgressCallback | None = None,
) -> Scores:
    """One pass over the views, the model's picture and its gradient in each. Of more than
    `MOST_VIEWS` so many are taken by chance, of all times alike.

    Raises:
        FormatError, StorageError, UsageError: a view's image cannot be had.
    """
    space, weight = np.zeros(model.count), np.zeros(model.count)
    time = np.zeros(model.count) if model.dynamic else None
    chosen = _spread(truth, settings.seed)
    for done, number in enumerate(chosen):
        view = truth.views[number]
        drawing = Drawing(rasteriser, model, view.camera, view.time)
        if view.image is None:
            by_image = random_signs(drawing.image.shape, (settings.seed, number))
        else:
            picture = truth.picture(number)
            by_image = loss(drawing.image, picture, kind="l1", ssim=settings.ssim)[1]
        found = drawing.gradients(by_image)
        space[found.active] += found.screen
        weight[found.active] += found.weights
        if time is not None and found.t_centers is not None:
            signed = settings.score == "signed"
            time[found.active] += found.t_centers if signed else np.abs(found.t_centers)
        if progress is not None:
            progress(Progress("scores", done + 1, len(chosen), "views"))
    return Scores(space, time, weight)


def _spread(truth: Truth, seed: int) -> list[int]:
    """Numbers of the views to look at. Evenly chosen ones might be of few moments, where cameras
    take turns; by chance alone some moments have none, and what lives then would score nothing."""
    count = len(truth)
    if count <= MOST_VIEWS:
        return list(range(count))
    draw = np.random.default_rng(seed)
    # Those of one moment in any order.
    times = np.array([0.0 if view.time is None else view.time for view in truth.views])
    ordered = np.lexsort((draw.random(count), times))
    edges = np.linspace(0, count, MOST_VIEWS + 1)
    return sorted(ordered[draw.integers(np.ceil(edges[:-1]), np.ceil(edges[1:]))].tolist())


def sd_scores(scores: Scores, kind: str) -> Doubles:
    """[n]: the product of both scores, each normalised.

    Args:
        kind: "signed": both go from their least to their greatest, 0 to 1. So a splat that does not
            change with time lies in the middle, and one with a large negative sum at 0, which is
            the paper's. "absolute": the same middle for the first, and 1 for the greatest
            change of either sign.
    """
    space = _between(scores.space)
    if scores.time is None:
        return space
    if kind == "signed":
        return space * _between(scores.time)
    greatest = float(scores.time.max(initial=0.0))
    return space * (0.5 + 0.5 * scores.time / (greatest if greatest > 0 else 1.0))


def importance(scores: Scores) -> Doubles:
    """[n]: weights of the splats' errors in quantization.

    The square root of what a splat shows: what it shows goes over orders of magnitude, and each
    splat is someone's close-up.
    """
    return np.sqrt(np.maximum(scores.weight, 0))


def random_signs(shape: tuple[int, ...], seed: tuple[int, int]) -> Floats:
    """1 or -1 over the number of values, in the picture's shape."""
    signs = np.random.default_rng(seed).integers(0, 2, shape, np.int8) * 2 - 1
    return signs.astype(np.float32) / np.float32(max(signs.size, 1))


def _between(values: Doubles) -> Doubles:
    """From the least to the greatest as 0 to 1; all 1 where they are the same."""
    if not len(values):
        return values
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.ones(len(values))
