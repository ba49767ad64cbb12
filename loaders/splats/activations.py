"""How trained parameters become a model's values, and back: logits, logarithms, colour offsets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.harmonics import C0
from penstock.loaders.splats.model import Floats

MAX_LOGIT = 16.0
"""An opacity of 0 or 1 has no logit; this one is 1e-7 away, under float32's resolution at 1."""
MIN_SCALE = 1e-30
"""A scale of 0 has no logarithm; this one is nothing in any scene."""


def sigmoid(logits: NDArray[np.floating]) -> Floats:
    """Opacities 0 to 1 of logits, infinite ones too; NaN stays NaN."""
    with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN becomes a quiet one
        return np.asarray(1 / (1 + np.exp(-np.asarray(logits, np.float64))), np.float32)


def logit(opacities: NDArray[np.floating]) -> Floats:
    """Logits of opacities 0 to 1, between plus and minus `MAX_LOGIT`."""
    p = np.asarray(opacities, np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(np.log(p) - np.log1p(-p), -MAX_LOGIT, MAX_LOGIT), np.float32)


def exponential(logarithms: NDArray[np.floating]) -> Floats:
    """Scales of their logarithms. What overflows float32 is infinite, for the model's check."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(np.exp(np.asarray(logarithms, np.float64)), np.float32)


def logarithm(scales: NDArray[np.floating]) -> Floats:
    """Natural logarithms of scales, 0 taken as `MIN_SCALE`."""
    return np.asarray(np.log(np.maximum(np.asarray(scales, np.float64), MIN_SCALE)), np.float32)


def colour_to_sh(colours: NDArray[np.floating]) -> Floats:
    """The first coefficients [..., 3] that give plain colours 0 to 1 [..., 3]."""
    with np.errstate(over="ignore", invalid="ignore"):  # not finite, for the model's check
        return np.asarray((np.asarray(colours, np.float64) - 0.5) / C0, np.float32)


def from_channel_major(rest: NDArray[np.floating], first: NDArray[np.floating]) -> Floats:
    """SH [n, 1 + m, 3] of `first` [n, 3] and PLY's rest [n, 3 m]: red's m, green's m, blue's m."""
    n, m = len(first), rest.shape[1] // 3
    sh = np.empty((n, 1 + m, 3), np.float32)
    sh[:, 0] = first
    sh[:, 1:] = rest.reshape(n, 3, m).transpose(0, 2, 1)
    return sh


def to_channel_major(sh: Floats) -> Floats:
    """PLY's order [n, 3 (k - 1)] of the coefficients after the first, of SH [n, k, 3]."""
    n, k, _ = sh.shape
    return np.ascontiguousarray(sh[:, 1:].transpose(0, 2, 1)).reshape(n, 3 * (k - 1))
