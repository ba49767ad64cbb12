"""How near pictures are to the truth: PSNR in several ways, SSIM, and how time looks.

Values are 0 to 1. PSNR and SSIM are means over pictures, never of all pixels at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating[Any]]
BEST = 99.0  # decibels: of pictures that are equal, so that means stay numbers


@dataclass(frozen=True)
class Scores:
    """Of a row of pictures against a row of others.

    Attributes:
        psnr: decibels, mean over pictures. worst: the lowest.
        there: psnr of pixels where the truth has more than background; the background flatters.
        moving: psnr of pixels where the truth has something that moves or changes.
        ssim: Wang et al. 2004: Gaussian window, sigma 1.5; mean over pictures and channels.
        temporal: psnr of the difference from picture to picture of a camera: what flickers.
    """

    psnr: float
    worst: float
    there: float
    moving: float
    ssim: float
    temporal: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Shown:
    """A picture [h, w, 3] beside another, with masks [h, w] of what to look at alone.

    Attributes:
        follows: the picture before it in the list is the same camera's, one frame earlier.
    """

    ours: Image
    truth: Image
    there: NDArray[np.bool_]
    moving: NDArray[np.bool_]
    follows: bool


def score(pairs: Sequence[Shown]) -> Scores:
    """All the numbers of pictures in the order of their time, camera by camera."""
    whole = [psnr(pair.ours, pair.truth) for pair in pairs]
    there = [psnr(p.ours[p.there], p.truth[p.there]) for p in pairs if p.there.any()]
    moving = [psnr(p.ours[p.moving], p.truth[p.moving]) for p in pairs if p.moving.any()]
    steps = [
        psnr(now.ours - before.ours, now.truth - before.truth)
        for before, now in zip(pairs, pairs[1:], strict=False)
        if now.follows
    ]
    alike = [ssim(pair.ours, pair.truth) for pair in pairs]
    return Scores(_mean(whole), min(whole), _mean(there), _mean(moving), _mean(alike), _mean(steps))


def psnr(one: Image, other: Image) -> float:
    """Decibels for values whose range is 1; `BEST` at most."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return BEST if error <= 10 ** (-BEST / 10) else -10 * math.log10(error)


def ssim(one: Image, other: Image) -> float:
    """Structural similarity of two pictures [h, w, 3] with values of 0 to 1.

    As scikit-image computes it with gaussian_weights, sigma 1.5, use_sample_covariance False and
    data_range 1, over the pixels whose whole window lies inside.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)
    means = [_blurred(values) for values in (a, b, a * a, b * b, a * b)]
    mean_a, mean_b = means[0], means[1]
    var_a, var_b, both = means[2] - mean_a**2, means[3] - mean_b**2, means[4] - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    over = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    under = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float(np.mean(over / under))


REACH = 5  # pixels of the window each way: 3.5 sigma


def _blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian means over windows of 11 x 11 that lie inside: [h - 10, w - 10, 3]."""
    weights = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / 1.5) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        length = values.shape[axis] - 2 * REACH
        values = sum(
            (w * values.take(range(n, n + length), axis) for n, w in enumerate(weights)),
            start=np.zeros(()),
        )
    return values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
