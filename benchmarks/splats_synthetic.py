"""Made-up scenes of any number of splats, for times and memory."""

from __future__ import annotations

import numpy as np

from penstock.loaders.splats.model import SplatModel, SplatMotion, check_model, unit_rotations

SIZE = 1.4  # of a splat, in distances between neighbours on the surface


def ball(
    count: int,
    *,
    seconds: float = 0.0,
    life: float = 0.5,
    lasting: float = 0.2,
    degree: int = 0,
    seed: int = 0,
) -> SplatModel:
    """Splats on a sphere of radius 1 and in a floor below it, as large as they are far apart.

    Args:
        seconds: that it lasts; 0: it does not move.
        life: t_sigma, of the splats that come and go.
        lasting: share of those that stay for all of it.
    """
    draw = np.random.default_rng(seed)
    means = draw.normal(size=(count, 3))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    floor = draw.random(count) < 0.4
    means[floor] = np.column_stack(
        [
            draw.uniform(-2, 2, floor.sum()),
            np.full(floor.sum(), 1.0),
            draw.uniform(-2, 2, floor.sum()),
        ]
    )
    area = 4 * np.pi + 16
    shown = count if seconds == 0 else max(1, round(count * _share_active(seconds, life, lasting)))
    size = SIZE * np.sqrt(area / shown) / 2
    scales = size * np.exp(draw.normal(-0.3, 0.5, (count, 3)))
    scales[np.arange(count), draw.integers(0, 3, count)] *= 0.15  # flat, as surfaces make them
    sh = draw.normal(0, 0.1, (count, (degree + 1) ** 2, 3))
    sh[:, 0] = draw.uniform(-1.4, 1.4, (count, 3))
    motion = None
    if seconds > 0:
        sigmas = np.where(draw.random(count) < 1 - lasting, life, 50 * seconds)
        motion = SplatMotion(
            draw.normal(0, 0.1, (count, 3)).astype(np.float32),
            draw.uniform(0, seconds, count).astype(np.float32),
            sigmas.astype(np.float32),
            start=0.0,
            end=seconds,
            fps=30.0,
        )
        motion.velocities[sigmas > seconds] = 0
    return check_model(
        SplatModel(
            means.astype(np.float32),
            scales.astype(np.float32),
            unit_rotations(draw.normal(size=(count, 4))),
            draw.uniform(0.1, 0.95, count).astype(np.float32),
            sh.astype(np.float32),
            motion,
        ),
        "a made-up scene",
    )


def _share_active(seconds: float, life: float, lasting: float) -> float:
    """About how many of the splats are seen at one time."""
    return lasting + (1 - lasting) * min(1.0, 2 * 2.45 * life / seconds)
