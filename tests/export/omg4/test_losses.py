"""Losses: their values, and their gradients against differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from penstock.errors import UsageError
from penstock.export.omg4.losses import loss, psnr, structural_similarity


def pictures(seed: int = 0, height: int = 14, width: int = 17) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.random((height, width, 3)).astype(np.float32),
        rng.random((height, width, 3)).astype(np.float32),
    )


@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("ssim", [0.0, 0.2, 1.0])
def test_gradients_are_those_of_differences(kind: str, ssim: float) -> None:
    image, truth = pictures()
    _, gradient = loss(image, truth, kind=kind, ssim=ssim)
    rng = np.random.default_rng(1)
    for _ in range(8):
        way = rng.normal(size=image.shape).astype(np.float32)
        way *= np.float32(1e-3) / np.abs(way).max()
        # L1 bends where the difference is 0: no pixel may cross it
        way[np.abs(image - truth) < 2e-3] = 0
        up = loss(image + way, truth, kind=kind, ssim=ssim)[0]
        down = loss(image - way, truth, kind=kind, ssim=ssim)[0]
        expected = float((gradient.astype(np.float64) * way).sum())
        assert (up - down) / 2 == pytest.approx(expected, rel=0.02, abs=2e-8)


def test_values_of_plain_differences() -> None:
    image = np.full((4, 5, 3), 0.75, np.float32)
    truth = np.full((4, 5, 3), 0.25, np.float32)
    assert loss(image, truth, kind="l1")[0] == pytest.approx(0.5)
    assert loss(image, truth, kind="l2")[0] == pytest.approx(0.25)
    assert loss(image, image, kind="l1", ssim=0.5)[0] == pytest.approx(0, abs=1e-9)


def test_similarity_is_that_of_its_definition() -> None:
    """Each pixel's window written out, zeros outside of the picture."""
    x, y = pictures(2)
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    pad = [(5, 5), (5, 5), (0, 0)]
    a, b = np.pad(x.astype(np.float64), pad), np.pad(y.astype(np.float64), pad)
    total = []
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            p = a[row : row + 11, column : column + 11]
            q = b[row : row + 11, column : column + 11]

            def mean(values: np.ndarray) -> np.ndarray:
                return np.asarray(np.einsum("ij,ijc->c", window, values))

            mp, mq = mean(p), mean(q)
            vp, vq, cov = mean(p * p) - mp**2, mean(q * q) - mq**2, mean(p * q) - mp * mq
            total.append(
                (2 * mp * mq + 1e-4)
                * (2 * cov + 9e-4)
                / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
            )
    assert structural_similarity(x, y)[0] == pytest.approx(float(np.mean(total)), abs=1e-9)


def test_decibels() -> None:
    image = np.zeros((2, 2, 3), np.float32)
    assert psnr(image + np.float32(0.1), image) == pytest.approx(20, abs=1e-4)
    assert psnr(image - 5, image) == math.inf  # what a screen would show is the same


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(14, 17, 3\).*\(14, 16, 3\)"):
        loss(pictures()[0], pictures(width=16)[1])
