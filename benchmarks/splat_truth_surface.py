"""Points spread evenly over a shape's surface, which move with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.splat_truth import Box, Capsule, Floats, Floor, Shape, Sphere

AROUND = 4  # points around a capsule, at least
CLEAR = 1e-9


@dataclass(frozen=True)
class Sample:
    """Points of a shape's surface, in a frame that goes with it.

    Attributes:
        local: [n, 3]: a sphere's directions, a box's own coordinates, a floor's from its centre, a
            capsule's share of its length and the cosine and sine around it.
        apart: the distance to neighbours along a first direction of the surface, and across it.
    """

    local: Floats
    apart: tuple[float, float]


def sample(shape: Shape, spacing: float) -> Sample:
    """Points about so far apart."""
    if isinstance(shape, Sphere):
        count = max(12, round(4 * math.pi * (shape.radius / spacing) ** 2))
        apart = shape.radius * math.sqrt(4 * math.pi / count)
        return Sample(_spiral(count), (apart, apart))
    if isinstance(shape, Capsule):
        around = max(AROUND, round(2 * math.pi * shape.radius / spacing))
        length = float(np.linalg.norm(shape.other - shape.one))
        rings = max(2, round(length / spacing))
        shares, angles = np.meshgrid(
            (np.arange(rings) + 0.5) / rings, 2 * math.pi * np.arange(around) / around
        )
        local = [shares.ravel(), np.cos(angles.ravel()), np.sin(angles.ravel())]
        return Sample(
            np.stack(local, axis=1), (length / rings, 2 * math.pi * shape.radius / around)
        )
    if isinstance(shape, Box):
        faces = [_face(shape.half, axis, sign, spacing) for axis in range(3) for sign in (-1, 1)]
        return Sample(np.concatenate(faces), (spacing, spacing))
    step = shape.square / max(1, round(shape.square / spacing))  # none on a border of squares
    half = math.ceil(shape.radius / step)
    ticks = (np.arange(-half, half) + 0.5) * step
    x, z = (side.ravel() for side in np.meshgrid(ticks, ticks))
    inside = x**2 + z**2 < shape.radius**2
    x, z = x[inside], z[inside]
    return Sample(np.stack([x, np.zeros_like(x), z], axis=1), (step, step))


def place(shape: Shape, found: Sample) -> tuple[Floats, Floats]:
    """Where a sample's points are [n, 3], and a direction [n, 3] along the surface at each."""
    local = found.local
    if isinstance(shape, Sphere):
        # Across the direction, and nowhere near it.
        other = np.where(np.abs(local[:, 1:2]) < 0.9, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]])
        return shape.centre + shape.radius * local, np.cross(local, other)
    if isinstance(shape, Capsule):
        axis = shape.other - shape.one
        unit = axis / max(float(np.linalg.norm(axis)), CLEAR)
        start = np.array([0.0, 0.0, 1.0]) if abs(unit[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
        side = np.cross(unit, start)
        side /= np.linalg.norm(side)
        out = local[:, 1:2] * side + local[:, 2:3] * np.cross(unit, side)
        points = shape.one + local[:, :1] * axis + shape.radius * out
        return points, np.broadcast_to(unit, points.shape)
    if isinstance(shape, Box):
        face = np.argmax(np.abs(local) - shape.half, axis=1)
        return shape.centre + local @ shape.axes.T, shape.axes.T[(face + 1) % 3]
    assert isinstance(shape, Floor)
    return shape.centre + local, np.broadcast_to(np.array([1.0, 0.0, 0.0]), local.shape)


def _face(half: Floats, axis: int, sign: int, spacing: float) -> Floats:
    """A grid on one side of a box, in its own coordinates."""
    sides = [n for n in range(3) if n != axis]
    ticks = []
    for side in sides:
        count = max(1, round(2 * float(half[side]) / spacing))
        ticks.append(((np.arange(count) + 0.5) / count * 2 - 1) * half[side])
    one, other = np.meshgrid(*ticks)
    points = np.empty((one.size, 3))
    points[:, axis] = sign * half[axis]
    points[:, sides[0]], points[:, sides[1]] = one.ravel(), other.ravel()
    return points


def _spiral(count: int) -> Floats:
    """Directions [count, 3] of length 1, spread evenly over the sphere."""
    height = 1 - (2 * np.arange(count) + 1) / count
    angle = math.pi * (3 - math.sqrt(5)) * np.arange(count)
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angle), height, radius * np.sin(angle)], axis=1)
