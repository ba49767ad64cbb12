"""How far a picture is from what it should be, and which way it should change.

    value = (1 - ssim) mean |difference|^p + ssim (1 - SSIM), p 1 or 2

3D Gaussian splatting trains with p = 1 and ssim = 0.2; PSNR alone is best served by p = 2.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004
C1, C2 = 0.01**2, 0.03**2  # for values of 0 to 1


def loss(
    image: Floats, truth: Floats, *, kind: str = "l2", ssim: float = 0.0
) -> tuple[float, Floats]:
    """(value, its gradient by the image [h, w, 3]) of pictures [h, w, 3].

    Raises:
        UsageError: the shapes differ.
    """
    if image.shape != truth.shape:
        raise UsageError(
            f"the picture is {image.shape}, its truth {truth.shape}; a view's image must have the "
            "size of its camera"
        )
    difference = image - truth
    scale = (1 - ssim) / max(difference.size, 1)
    if kind == "l1":
        value = scale * float(np.abs(difference).sum(dtype=np.float64))
        gradient = np.sign(difference) * np.float32(scale)
    else:
        value = scale * float(np.square(difference, dtype=np.float64).sum())
        gradient = difference * np.float32(2 * scale)
    if ssim > 0:
        alike, towards = structural_similarity(image, truth)
        value += ssim * (1 - alike)
        gradient -= np.float32(ssim) * towards
    return value, gradient


def psnr(image: Floats, truth: Floats) -> float:
    """Decibels, for values of 0 to 1; what is outside is clipped, as on a screen. Infinite where
    the pictures are the same."""
    difference = np.clip(image, 0, 1).astype(np.float64) - np.clip(truth, 0, 1)
    error = float(np.square(difference).mean()) if difference.size else 0.0
    return math.inf if error == 0 else -10 * math.log10(error)


def structural_similarity(x: Floats, y: Floats) -> tuple[float, Floats]:
    """(SSIM, its gradient by x), the mean over pixels and channels [h, w, 3].

    Gaussian windows of 11 pixels, zeros outside of the picture, as 3D Gaussian splatting has it.
    """
    a, b = x.astype(np.float64), y.astype(np.float64)
    ma, mb = _blur(a), _blur(b)
    saa, sbb, sab = _blur(a * a) - ma * ma, _blur(b * b) - mb * mb, _blur(a * b) - ma * mb
    top1, top2 = 2 * ma * mb + C1, 2 * sab + C2
    low1, low2 = ma * ma + mb * mb + C1, saa + sbb + C2
    both = low1 * low2
    alike = top1 * top2 / both
    # By the three windowed means that x goes into: of x, of x^2 and of x y.
    by_square = -alike / low2
    by_product = 2 * top1 / both
    by_mean = (
        2 * mb * (top2 - top1) / both - 2 * ma * alike / low1 + 2 * ma * alike / low2
    )  # top2 and low2 hold -ma^2 and -ma mb
    gradient = _blur(by_mean) + 2 * a * _blur(by_square) + b * _blur(by_product)
    count = max(alike.size, 1)
    return float(alike.sum()) / count, (gradient / count).astype(np.float32)


def _blur(values: Doubles) -> Doubles:
    """Each pixel's windowed mean, along both axes; its own transpose."""
    for axis in (0, 1):
        padding = [(0, 0)] * values.ndim
        padding[axis] = (WINDOW // 2, WINDOW // 2)
        padded = np.pad(values, padding)
        length = values.shape[axis]
        total = np.zeros_like(values)
        for k, weight in enumerate(_KERNEL):
            shifted = (slice(None),) * axis + (slice(k, k + length),)
            total += weight * padded[shifted]
        values = total
    return values


def _kernel() -> list[float]:
    raw = [math.exp(-((k - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for k in range(WINDOW)]
    return [one / sum(raw) for one in raw]


_KERNEL = _kernel()
