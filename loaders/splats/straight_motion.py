"""Curved motions as the straight ones nearest to them while the splat is seen.

Formats with quadratic and cubic motion move a splat by v dt + a dt^2 + b dt^3 from its t_center
on. A model's splats move in straight lines; the tangent at t_center is exact only there, so the
line is fitted instead: least squares over the times at which the splat is drawn, each weighted by
the splat's weight then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.covariance import blocks
from penstock.loaders.splats.model import SEEN_SIGMAS, Floats

SAMPLES = 33  # times a splat


@dataclass(frozen=True)
class Lines:
    """What lines add to their splats.

    Attributes:
        offsets: [n, 3], to the means.
        velocities: [n, 3], to the velocities, a second.
        errors: [n], the largest distance from the curve while the splat is drawn.
    """

    offsets: Floats
    velocities: Floats
    errors: Floats


def fit_lines(
    t_centers: NDArray[np.floating],
    t_sigmas: NDArray[np.floating],
    quadratic: NDArray[np.floating],
    cubic: NDArray[np.floating],
    start: float,
    end: float,
) -> Lines:
    """The lines nearest to quadratic dt^2 + cubic dt^3.

    Args:
        t_centers, t_sigmas: [n], seconds.
        quadratic, cubic: [n, 3].
        start, end: of the scene; a splat is seen only between them. One that lies outside wholly
            is fitted over its own times.
    """
    n = len(t_centers)
    lines = Lines(
        np.empty((n, 3), np.float32), np.empty((n, 3), np.float32), np.empty(n, np.float32)
    )
    for part in blocks(n):
        with np.errstate(all="ignore"):  # what is not finite is found by the model's check
            center = np.asarray(t_centers[part], np.float64)
            sigma = np.asarray(t_sigmas[part], np.float64)
            sigma = np.where(sigma > 0, sigma, 1)  # others are the model's check to refuse
            reach = SEEN_SIGMAS * sigma
            first, last = np.maximum(-reach, start - center), np.minimum(reach, end - center)
            outside = ~(first < last)
            first, last = np.where(outside, -reach, first), np.where(outside, reach, last)
            # [splats, SAMPLES], seconds from t_center; the middle of equal steps
            steps = (np.arange(SAMPLES) + 0.5) / SAMPLES
            dt = first[:, None] + (last - first)[:, None] * steps
            weights = np.exp(-0.5 * (dt / sigma[:, None]) ** 2)
            weights /= weights.sum(axis=1, keepdims=True)
            lines.offsets[part], lines.velocities[part], lines.errors[part] = _fit(
                dt, weights, np.asarray(quadratic[part]), np.asarray(cubic[part])
            )
    return lines


def _fit(
    dt: NDArray[np.float64],
    weights: NDArray[np.float64],
    quadratic: NDArray[np.floating],
    cubic: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weighted least squares of one line a splat and axis: offsets, slopes, largest errors."""
    powers = dt[:, :, None] ** np.array([2, 3])  # [n, samples, 2]
    curve = np.einsum("nsk,nkc->nsc", powers, np.stack([quadratic, cubic], axis=1))
    middle = np.einsum("ns,ns->n", weights, dt)
    away = dt - middle[:, None]
    spread = np.einsum("ns,ns->n", weights, away * away)
    slopes = np.einsum("ns,nsc->nc", weights * away, curve)
    slopes /= np.where(spread > 0, spread, 1)[:, None]
    offsets = np.einsum("ns,nsc->nc", weights, curve) - slopes * middle[:, None]
    fitted = offsets[:, None, :] + slopes[:, None, :] * dt[:, :, None]
    errors = np.sqrt(np.einsum("nsc,nsc->ns", curve - fitted, curve - fitted).max(axis=1))
    return offsets, slopes, errors
