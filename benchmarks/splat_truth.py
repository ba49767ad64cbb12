"""Pictures of simple shapes by casting rays: the truth that splats are held against.

It knows nothing of splats and imports nothing of Penstock. Spheres, boxes, capsules and a checker
floor; Lambert's law and one Phong highlight from a distant light; no shadows. A pixel is the mean
of 16 rays where anything changes from it to its neighbours, one ray elsewhere. World and camera are
x right, y down, z forward; the middle of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

EPSILON = 1e-9
SIDE = 4  # rays in a row of those of one pixel
ALIKE = 0.02  # of neighbouring pixels' colours: a larger step is looked at closely
MISS = -1  # the number of no shape


@dataclass(frozen=True)
class Paint:
    """How a surface looks.

    Attributes:
        colour, other: red, green, blue in 0..1; a floor's squares have them by turns.
        shine: strength of the highlight; sharpness: Phong's exponent.
    """

    colour: tuple[float, float, float]
    other: tuple[float, float, float] | None = None
    shine: float = 0.0
    sharpness: float = 20.0


@dataclass(frozen=True)
class Sphere:
    centre: Floats  # [3]
    radius: float
    paint: Paint


@dataclass(frozen=True)
class Box:
    """axes [3, 3]: its columns are the box's own directions, of length 1; half [3]: half sides."""

    centre: Floats
    half: Floats
    axes: Floats
    paint: Paint


@dataclass(frozen=True)
class Capsule:
    """All points within a radius of the line from one end [3] to the other."""

    one: Floats
    other: Floats
    radius: float
    paint: Paint


@dataclass(frozen=True)
class Floor:
    """A disc at a height, with squares of a side, seen from above (smaller y) and below."""

    centre: Floats
    radius: float
    square: float
    paint: Paint


Shape = Sphere | Box | Capsule | Floor


@dataclass(frozen=True)
class Light:
    """A distant one. direction [3]: towards it, of length 1."""

    direction: Floats
    ambient: float = 0.35
    diffuse: float = 0.65


@dataclass(frozen=True)
class Pinhole:
    """camera = rotation [3, 3] world + translation [3]; lengths in pixels."""

    rotation: Floats
    translation: Floats
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @property
    def eye(self) -> Floats:
        """Where it is in the world."""
        eye: Floats = -self.rotation.T @ self.translation
        return eye


@dataclass(frozen=True)
class Picture:
    """A picture [h, w, 3] in 0..1, and how much of each pixel [h, w] each shape covers."""

    image: Floats
    coverage: Floats  # [shapes, h, w]


def look_at(
    eye: Sequence[float], target: Sequence[float], width: int, height: int, fov_degrees: float
) -> Pinhole:
    """A camera whose horizontal field of view is given; up is -y."""
    place, to = np.asarray(eye, float), np.asarray(target, float)
    forward = (to - place) / np.linalg.norm(to - place)
    right = np.cross((0.0, 1.0, 0.0), forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    focal = width / 2 / math.tan(math.radians(fov_degrees) / 2)
    return Pinhole(rotation, -rotation @ place, focal, focal, width / 2, height / 2, width, height)


def cast(shapes: Sequence[Shape], light: Light, camera: Pinhole) -> Picture:
    """The picture of shapes before black."""
    height, width, count = camera.height, camera.width, len(shapes)
    rows, columns = np.mgrid[0:height, 0:width]
    middles = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)  # [h w, 2]: x, y
    hit, colours, near = _trace(shapes, light, camera, middles, widened=True)
    coverage = np.zeros((count, height * width))
    for number in range(count):
        coverage[number] = hit == number
    close = near | _edges(hit.reshape(height, width), colours.reshape(height, width, 3)).ravel()

    pixels = np.flatnonzero(close)
    places = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    offsets = np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)  # [16, 2]
    samples = (middles[pixels, None, :] + offsets).reshape(-1, 2)
    hit_fine, colours_fine, _ = _trace(shapes, light, camera, samples, widened=False)
    colours[pixels] = colours_fine.reshape(len(pixels), len(offsets), 3).mean(axis=1)
    for number in range(count):
        share = (hit_fine == number).reshape(len(pixels), len(offsets)).mean(axis=1)
        coverage[number, pixels] = share
    return Picture(colours.reshape(height, width, 3), coverage.reshape(count, height, width))


def shade(
    points: Floats, normals: Floats, albedo: Floats, paint: Paint, light: Light, eye: Floats
) -> Floats:
    """Colours [n, 3] of surface points [n, 3] as an eye [3] or [n, 3] sees them."""
    to_light = np.maximum(normals @ light.direction, 0.0)
    colours = albedo * (light.ambient + light.diffuse * to_light)[:, None]
    if paint.shine > 0:
        away = eye - points
        away = away / np.linalg.norm(away, axis=1, keepdims=True)
        mirrored = 2 * (normals @ light.direction)[:, None] * normals - light.direction
        toward = np.maximum(np.einsum("ni,ni->n", mirrored, away), 0.0)
        colours = colours + (paint.shine * (to_light > 0) * toward**paint.sharpness)[:, None]
    return np.minimum(colours, 1.0)


def albedo_of(shape: Shape, points: Floats) -> Floats:
    """The paint's colours [n, 3] at points of a shape's surface."""
    first = np.broadcast_to(np.asarray(shape.paint.colour, float), points.shape)
    if not isinstance(shape, Floor) or shape.paint.other is None:
        return first
    squares = np.floor((points - shape.centre)[:, [0, 2]] / shape.square).sum(axis=1)
    return np.where((squares % 2 == 0)[:, None], first, np.asarray(shape.paint.other, float))


def normals_of(shape: Shape, points: Floats) -> Floats:
    """Outward normals [n, 3] of length 1 at points of a shape's surface."""
    if isinstance(shape, Floor):
        return np.broadcast_to(np.array([0.0, -1.0, 0.0]), points.shape)
    if isinstance(shape, Box):
        local = (points - shape.centre) @ shape.axes
        face = np.argmax(np.abs(local) - shape.half, axis=1)
        signs = np.where(np.take_along_axis(local, face[:, None], 1) < 0, -1.0, 1.0)
        return np.asarray(signs * shape.axes.T[face])
    if isinstance(shape, Sphere):
        away = points - shape.centre
    else:
        axis = shape.other - shape.one
        along = (points - shape.one) @ axis / max(float(axis @ axis), EPSILON)
        away = points - shape.one - np.clip(along, 0, 1)[:, None] * axis
    return np.asarray(away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), EPSILON))


def distances(shape: Shape, eye: Floats, rays: Floats) -> Floats:
    """How far along rays [n, 3] of length 1 from an eye a shape is first met: [n], or infinity."""
    if isinstance(shape, Sphere):
        return _ball(eye - shape.centre, rays, shape.radius)
    if isinstance(shape, Capsule):
        return _capsule(shape, eye, rays)
    if isinstance(shape, Box):
        return _box(shape, eye, rays)
    down = np.where(np.abs(rays[:, 1]) < EPSILON, EPSILON, rays[:, 1])
    far = (shape.centre[1] - eye[1]) / down
    off = eye[[0, 2]] + far[:, None] * rays[:, [0, 2]] - shape.centre[[0, 2]]
    inside = np.einsum("ni,ni->n", off, off) < shape.radius**2
    return np.where((far > EPSILON) & inside, far, np.inf)


# ---------------------------------------------------------------- rays


def _trace(
    shapes: Sequence[Shape], light: Light, camera: Pinhole, places: Floats, *, widened: bool
) -> tuple[NDArray[np.int64], Floats, Bools]:
    """Of each place [n, 2] on the picture: the shape that is met, its colour [n, 3], and whether
    one that a pixel more would meet is near (where `widened`)."""
    eye = camera.eye
    flat = (places - (camera.cx, camera.cy)) / (camera.fx, camera.fy)
    rays = np.column_stack([flat, np.ones(len(flat))]) @ camera.rotation
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    nearest = np.full(len(rays), np.inf)
    hit = np.full(len(rays), MISS)
    near = np.zeros(len(rays), bool)
    for number, shape in enumerate(shapes):
        far = _first_met(shape, eye, rays)
        closer = far < nearest
        nearest[closer], hit[closer] = far[closer], number
        if widened:
            # Thinner than a pixel, a shape may lie between the middles of all.
            near |= np.isfinite(_first_met(_grown(shape, camera), eye, rays)) & np.isinf(far)
    colours = np.zeros((len(rays), 3))
    for number, shape in enumerate(shapes):
        mine = np.flatnonzero(hit == number)
        if len(mine):
            points = eye + nearest[mine, None] * rays[mine]
            normals = normals_of(shape, points)
            colours[mine] = shade(
                points, normals, albedo_of(shape, points), shape.paint, light, eye
            )
    return hit, colours, near


def _first_met(shape: Shape, eye: Floats, rays: Floats) -> Floats:
    """As `distances`; only the rays through the ball around the shape are looked at."""
    if isinstance(shape, Floor):
        return distances(shape, eye, rays)
    if isinstance(shape, Capsule):
        middle = (shape.one + shape.other) / 2
        reach = float(np.linalg.norm(shape.other - middle)) + shape.radius
    else:
        middle = shape.centre
        reach = float(np.linalg.norm(shape.half)) if isinstance(shape, Box) else shape.radius
    to = middle - eye
    through = np.flatnonzero(to @ to - (rays @ to) ** 2 <= (reach + EPSILON) ** 2)
    far = np.full(len(rays), np.inf)
    far[through] = distances(shape, eye, rays[through])
    return far


def _grown(shape: Shape, camera: Pinhole) -> Shape:
    """A shape that is larger by what a pixel covers at its far side."""
    eye = camera.eye
    if isinstance(shape, Capsule):
        away = max(float(np.linalg.norm(end - eye)) for end in (shape.one, shape.other))
        reach = shape.radius
    else:
        away = float(np.linalg.norm(shape.centre - eye))
        reach = float(np.linalg.norm(shape.half)) if isinstance(shape, Box) else shape.radius
    pixel = (away + reach) / min(camera.fx, camera.fy)
    if isinstance(shape, Box):
        return replace(shape, half=shape.half + pixel)
    return replace(shape, radius=shape.radius + pixel)


def _edges(hit: NDArray[np.int64], colours: Floats) -> Bools:
    """Pixels [h, w] that differ from one of the eight around them."""
    found = np.zeros(hit.shape, bool)
    height, width = hit.shape
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
        there = (slice(dy, height), slice(max(0, dx), width - max(0, -dx)))
        step = np.abs(colours[here] - colours[there]).max(axis=2) > ALIKE
        step |= hit[here] != hit[there]
        found[here] |= step
        found[there] |= step
    return found


def _ball(from_centre: Floats, rays: Floats, radius: float) -> Floats:
    along = rays @ from_centre
    inside = along**2 - (from_centre @ from_centre - radius**2)
    root = np.sqrt(np.maximum(inside, 0.0))
    far = np.where(-along - root > EPSILON, -along - root, -along + root)
    return np.where((inside >= 0) & (far > EPSILON), far, np.inf)


def _box(shape: Box, eye: Floats, rays: Floats) -> Floats:
    start = (eye - shape.centre) @ shape.axes
    local = rays @ shape.axes
    local = np.where(np.abs(local) < EPSILON, EPSILON, local)
    one, two = (-shape.half - start) / local, (shape.half - start) / local
    enter = np.minimum(one, two).max(axis=1)
    leave = np.maximum(one, two).min(axis=1)
    far = np.where(enter > EPSILON, enter, leave)
    return np.where((enter <= leave) & (far > EPSILON), far, np.inf)


def _capsule(shape: Capsule, eye: Floats, rays: Floats) -> Floats:
    """The cylinder between the ends, and the ball at each: the nearest that is met."""
    axis = shape.other - shape.one
    start = eye - shape.one
    length2 = float(axis @ axis)
    found = np.minimum(
        _ball(start, rays, shape.radius), _ball(eye - shape.other, rays, shape.radius)
    )
    if length2 < EPSILON:
        return found
    # Without their parts along the axis, ray and start are those of a circle.
    across = rays - np.outer(rays @ axis, axis) / length2
    off = start - (start @ axis) / length2 * axis
    a = np.maximum(np.einsum("ni,ni->n", across, across), EPSILON)
    b = across @ off
    inside = b**2 - a * (off @ off - shape.radius**2)
    root = np.sqrt(np.maximum(inside, 0.0))
    for far in ((-b - root) / a, (-b + root) / a):
        along = (start @ axis + far * (rays @ axis)) / length2
        meets = (inside >= 0) & (far > EPSILON) & (along >= 0) & (along <= 1)
        found = np.where(meets, np.minimum(found, far), found)
    return found
