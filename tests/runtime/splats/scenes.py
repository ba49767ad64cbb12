"""Small made-up models for the tests of drawing, writing and viewing."""

from __future__ import annotations

import numpy as np

from penstock.loaders.splats.model import SplatModel, SplatMotion, check_model, unit_rotations


def random_model(
    count: int, *, degree: int = 0, dynamic: bool = False, seed: int = 0, size: float = 0.08
) -> SplatModel:
    """Splats in a ball of radius 1, of sizes around `size`; a moving one lasts two seconds."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return draw.normal(size=shape).astype(np.float32)

    means = normal(count, 3)
    means *= (draw.random((count, 1)) / np.linalg.norm(means, axis=1, keepdims=True)).astype("f4")
    sh = 0.15 * normal(count, (degree + 1) ** 2, 3)
    sh[:, 0] = draw.uniform(-1.5, 1.5, (count, 3))
    motion = None
    if dynamic:
        motion = SplatMotion(
            0.3 * normal(count, 3),
            draw.uniform(0, 2, count).astype(np.float32),
            draw.uniform(0.2, 1, count).astype(np.float32),
            start=0.0,
            end=2.0,
            fps=10.0,
        )
    model = SplatModel(
        means,
        (size * np.exp(0.5 * normal(count, 3))).astype(np.float32),
        unit_rotations(normal(count, 4)),
        draw.uniform(0.2, 0.95, count).astype(np.float32),
        sh,
        motion,
    )
    return check_model(model, "a random model")


def psnr(one: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], other: object) -> float:
    """Decibels of two pictures of bytes; infinite where they are equal."""
    error = np.mean((one.astype(np.float64) - np.asarray(other, np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
