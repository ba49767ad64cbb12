"""Weak and strong views of sensor windows: what a window could also have looked like.

Windows [n, channels, time] are shaken as a sensor is (Um et al., ICMI 2017): noise, gain, another
mounting, another pace, another order of movements. Windows of features [n, features] have lost
their time, so only noise, gain and masking are left. Every function takes and returns float32 of
one shape, draws each window's change by itself, and never changes its input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

Windows = NDArray[np.float32]


def weak_view(windows: Windows, rng: np.random.Generator) -> Windows:
    """Noise of 5 % and a gain of 5 %: the label certainly stays."""
    return scaling(jitter(windows, rng, 0.05), rng, 0.05)


def strong_view(windows: Windows, rng: np.random.Generator) -> Windows:
    """A view that keeps the activity but not the looks.

    Series: two of rotation, time warp, permutation and cropping, drawn for the batch, then noise
    of 10 % and a gain of 15 %. Features: a tenth masked, noise of 10 %, a gain of 10 %.

    Raises:
        UsageError: neither [n, features] nor [n, channels, time]; images have other views.
    """
    if windows.ndim == 2:
        return scaling(jitter(masking(windows, rng, 0.1), rng, 0.1), rng, 0.1)
    if windows.ndim != 3:
        raise UsageError(
            f"views: windows have shape {windows.shape}, expected [n, features] or "
            "[n, channels, time]"
        )
    changes = (rotation, time_warp, permutation, cropping)
    for choice in sorted(rng.choice(len(changes), 2, replace=False)):
        windows = changes[choice](windows, rng)
    return scaling(jitter(windows, rng, 0.1), rng, 0.15)


# ---------------------------------------------------------------- both kinds


def jitter(windows: Windows, rng: np.random.Generator, sigma: float) -> Windows:
    """Gaussian noise of this standard deviation; sensor data is taken to be standardised."""
    return windows + np.float32(sigma) * rng.standard_normal(windows.shape, dtype=np.float32)


def scaling(windows: Windows, rng: np.random.Generator, sigma: float) -> Windows:
    """A gain near 1 for each window and channel (each window, of features)."""
    shape = (len(windows), windows.shape[1] if windows.ndim > 2 else 1) + (1,) * (windows.ndim - 2)
    return windows * (1 + np.float32(sigma) * rng.standard_normal(shape, dtype=np.float32))


# ---------------------------------------------------------------- features


def masking(windows: Windows, rng: np.random.Generator, share: float) -> Windows:
    """Each value becomes 0, the mean of standardised features, with this probability."""
    return windows * (rng.random(windows.shape, dtype=np.float32) >= share)


# ---------------------------------------------------------------- series


def rotation(windows: Windows, rng: np.random.Generator, degrees: float = 30.0) -> Windows:
    """Each window's 3-axis groups of channels turned around one random axis: the phone sits
    differently in the pocket. Channels beyond the last whole group stay.

    Args:
        degrees: greatest angle.
    """
    n, channels, time = windows.shape
    groups = channels // 3
    if not groups:
        return windows.copy()
    axis = rng.standard_normal((n, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True) + 1e-12
    angle = rng.uniform(-np.radians(degrees), np.radians(degrees), n)
    turned = windows.copy()
    grouped = windows[:, : 3 * groups].reshape(n, groups, 3, time)
    turned[:, : 3 * groups] = np.einsum(
        "nij,ngjt->ngit", rotation_matrices(axis, angle).astype(np.float32), grouped
    ).reshape(n, 3 * groups, time)
    return turned


def rotation_matrices(axis: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rodrigues: unit axes [n, 3] and radians [n] to [n, 3, 3]."""
    cross = np.zeros((len(axis), 3, 3))
    x, y, z = axis.T
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -z, y, -x
    cross[:, 1, 0], cross[:, 2, 0], cross[:, 2, 1] = z, -y, x
    sine, versine = np.sin(angle)[:, None, None], (1 - np.cos(angle))[:, None, None]
    return np.eye(3) + sine * cross + versine * (cross @ cross)


def time_warp(windows: Windows, rng: np.random.Generator, strength: float = 0.2) -> Windows:
    """A pace that changes smoothly and stays positive: values are read at warped times.

    Args:
        strength: standard deviation of the pace at four knots.
    """
    n, _, time = windows.shape
    knots = 1 + np.clip(strength * rng.standard_normal((n, 4)), -0.8, 0.8)
    at = np.linspace(0, 3, time)
    left = np.minimum(at.astype(np.intp), 2)
    pace = knots[:, left] + (at - left) * (knots[:, left + 1] - knots[:, left])
    moments = np.cumsum(pace, axis=1) - pace[:, :1]
    moments *= (time - 1) / np.maximum(moments[:, -1:], 1e-12)
    return _read_at(windows, moments)


def permutation(windows: Windows, rng: np.random.Generator, segments: int = 4) -> Windows:
    """Each window cut into equal segments, put together in a random order."""
    n, _, time = windows.shape
    pieces = np.array_split(np.arange(time), min(segments, time))
    order = np.empty((n, time), np.intp)
    for row in order:
        row[:] = np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])
    return np.take_along_axis(windows, order[:, None, :], axis=2)


def cropping(windows: Windows, rng: np.random.Generator, least: float = 0.7) -> Windows:
    """A random stretch of each window, at least this share of it, drawn out to the whole length."""
    n, _, time = windows.shape
    share = rng.uniform(least, 1.0, (n, 1))
    begin = rng.uniform(0.0, 1.0, (n, 1)) * (1 - share) * (time - 1)
    return _read_at(windows, begin + share * np.arange(time))


def _read_at(windows: Windows, moments: NDArray[np.float64]) -> Windows:
    """Values between samples, linearly: moments [n, time] in samples, within the window."""
    last = windows.shape[2] - 1
    moments = np.clip(moments, 0, last)
    before = np.minimum(moments.astype(np.intp), max(last - 1, 0))
    after = np.minimum(before + 1, last)
    share = (moments - before)[:, None, :].astype(np.float32)
    left = np.take_along_axis(windows, before[:, None, :], axis=2)
    right = np.take_along_axis(windows, after[:, None, :], axis=2)
    return left + share * (right - left)
