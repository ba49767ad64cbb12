"""Small scenes of splats, and cameras around them."""

from __future__ import annotations

import numpy as np

from penstock.loaders.splats.model import SplatModel, SplatMotion, unit_rotations
from penstock.runtime.splats.camera import Camera, View, look_at

SIDE = 48  # pixels


def cloud(
    count: int, *, seed: int = 0, coefficients: int = 4, moving: bool = True, size: float = 0.12
) -> SplatModel:
    """Splats of all shapes in the cube from -1 to 1, over two seconds."""
    rng = np.random.default_rng(seed)

    def f4(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values, np.float32)

    motion = None
    if moving:
        motion = SplatMotion(
            f4(rng.normal(size=(count, 3)) * 0.2),
            f4(rng.random(count) * 2),
            f4(np.exp(rng.normal(size=count) * 0.5) * 0.5),
            0.0,
            2.0,
            12.0,
        )
    sh = rng.normal(size=(count, coefficients, 3)) * 0.15
    sh[:, 0] = rng.random((count, 3)) * 2 - 0.5
    return SplatModel(
        f4(rng.random((count, 3)) * 2 - 1),
        f4(size * np.exp(rng.normal(size=(count, 3)) * 0.4)),
        unit_rotations(rng.normal(size=(count, 4))),
        f4(0.2 + 0.7 * rng.random(count)),
        f4(sh),
        motion,
    )


def cameras(count: int, *, side: int = SIDE) -> list[Camera]:
    """On a ring around the cube, looking at its middle."""
    found = []
    for k in range(count):
        angle = 2 * np.pi * k / count
        eye = (4 * np.sin(angle), -1.0, -4 * np.cos(angle))
        found.append(look_at(eye, (0, 0, 0), width=side, height=side, fov_degrees=40))
    return found


def views(count: int, *, moving: bool = True, side: int = SIDE) -> list[View]:
    """Of the cube, without images, at moments of two seconds."""
    return [
        View(camera, 2.0 * k / max(count - 1, 1) if moving else None, None)
        for k, camera in enumerate(cameras(count, side=side))
    ]
