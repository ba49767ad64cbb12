"""The moving scene of the truth, its cameras, and its pictures on disk.

Each actor is one thing that 4D splats find hard: a straight path, a circle, a box that spins, one
that comes and goes at once, one that hides others, a colour that changes, a thin rod that swings.
Like `splat_truth`, it imports nothing of Penstock.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.splat_truth import (
    Box,
    Capsule,
    Floor,
    Light,
    Paint,
    Pinhole,
    Shape,
    Sphere,
    cast,
    look_at,
)

DURATION, FPS = 2.0, 30.0  # seconds; frames a second
LIGHT = Light(np.array([0.45, -0.8, -0.4]) / math.sqrt(0.45**2 + 0.8**2 + 0.4**2))
FOV, RADIUS, TARGET = 50.0, 4.2, (0.0, -0.35, 0.0)  # degrees; of the arc of cameras
VERSION = 1  # of the scene: pictures of another are made again


@dataclass(frozen=True)
class Actor:
    """A shape that moves.

    Attributes:
        at: the shape at a time, in seconds.
        moving: its place changes. changing: its colour does.
        seen: from when until when it is there.
    """

    name: str
    at: Callable[[float], Shape]
    moving: bool = True
    changing: bool = False
    seen: tuple[float, float] = (-math.inf, math.inf)


def actors() -> list[Actor]:
    """The scene's actors; y = 0 is the floor."""
    return [
        Actor("floor", lambda t: _FLOOR, moving=False),
        Actor("pillar", lambda t: _PILLAR, moving=False),
        Actor("straight", _straight),
        Actor("circle", _circle),
        Actor("spinning", _spinning),
        Actor("coming and going", lambda t: _VISITOR, moving=False, seen=(0.5, 1.4)),
        Actor("changing colour", _changing, moving=False, changing=True),
        Actor("rod", _rod),
    ]


_FLOOR = Floor(np.zeros(3), 2.2, 0.275, Paint((0.82, 0.8, 0.74), other=(0.25, 0.33, 0.36)))
_PILLAR = Box(
    np.array([0.0, -0.45, 0.0]), np.array([0.2, 0.45, 0.2]), np.eye(3),
    Paint((0.72, 0.55, 0.35), shine=0.3, sharpness=12.0),
)  # fmt: skip
_VISITOR = Box(
    np.array([-0.95, -0.2, -0.95]), np.array([0.2, 0.2, 0.2]), np.eye(3), Paint((0.85, 0.45, 0.1))
)


def _straight(t: float) -> Shape:
    """Behind the pillar, from left to right, as the front camera sees it."""
    place = np.array([-1.2 + 1.2 * t, -0.3, 0.75])
    return Sphere(place, 0.3, Paint((0.8, 0.15, 0.15), shine=0.5, sharpness=25.0))


def _circle(t: float) -> Shape:
    turn = math.pi * t  # once in two seconds
    place = np.array([1.15 * math.cos(turn), -0.75, 1.15 * math.sin(turn)])
    return Sphere(place, 0.17, Paint((0.15, 0.35, 0.85), shine=0.6, sharpness=30.0))


def _spinning(t: float) -> Shape:
    turn = 0.5 * math.pi * t
    c, s = math.cos(turn), math.sin(turn)
    axes = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return Box(
        np.array([1.0, -0.25, -0.8]), np.array([0.3, 0.25, 0.16]), axes, Paint((0.3, 0.65, 0.3))
    )


def _changing(t: float) -> Shape:
    share = 0.5 - 0.5 * math.cos(math.pi * t)  # there and back
    colour = (0.9 - 0.7 * share, 0.25 + 0.1 * share, 0.2 + 0.65 * share)
    return Sphere(np.array([-0.75, -0.22, -0.1]), 0.22, Paint(colour))


def _rod(t: float) -> Shape:
    """A pendulum that hangs over the floor, 24 mm thick where the floor is 4.4 m across."""
    swing = 0.7 * math.sin(math.pi * t)
    top = np.array([-0.3, -1.5, -0.75])
    end = top + 1.1 * np.array([math.sin(swing), math.cos(swing), 0.0])
    return Capsule(top, end, 0.012, Paint((0.95, 0.85, 0.2)))


def shapes_at(time: float) -> tuple[list[Shape], list[Actor]]:
    """What is there at a time, and whose it is."""
    there = [actor for actor in actors() if actor.seen[0] <= time < actor.seen[1]]
    return [actor.at(time) for actor in there], there


# ---------------------------------------------------------------- cameras and times


def frame_times(frames: int) -> list[float]:
    """Times of so many frames over the whole scene."""
    return [DURATION * n / frames for n in range(frames)]


def cameras(width: int, height: int) -> dict[str, list[Pinhole]]:
    """`train`: 18 on two arcs in front. `test`: 3 between them. `off_arc`: one high at a side,
    which shows what floats where no camera looked. `fresh`: 3 more between the arcs, which no
    setting of the compression was chosen by."""

    def around(azimuth: float, elevation: float, radius: float = RADIUS) -> Pinhole:
        a, e = math.radians(azimuth), math.radians(elevation)
        eye = np.array(TARGET) + radius * np.array(
            [math.sin(a) * math.cos(e), -math.sin(e), -math.cos(a) * math.cos(e)]
        )
        return look_at(eye.tolist(), TARGET, width, height, FOV)

    train = [around(-60 + 15 * n, 14 if n % 2 else 20) for n in range(9)]
    train += [around(-60 + 15 * n, 40 if n % 2 else 34) for n in range(9)]
    test = [around(-37, 26), around(4, 11), around(42, 30)]
    fresh = [around(-52, 30), around(-11, 24), around(26, 17)]
    return {"train": train, "test": test, "off_arc": [around(95, 60)], "fresh": fresh}


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Shot:
    """One picture of the truth.

    Attributes:
        pixels: uint8 [h, w, 3].
        there: bool [h, w]: something is there in at least half of the pixel, not only black.
        moving: likewise, something that moves, changes, comes or goes.
    """

    camera: Pinhole
    time: float
    pixels: NDArray[np.uint8]
    there: NDArray[np.bool_]
    moving: NDArray[np.bool_]


def shoot(camera: Pinhole, time: float) -> Shot:
    """Cast one picture."""
    return Shot(camera, time, *_cast(camera, time))


def shoot_all(
    wanted: Sequence[tuple[Pinhole, float]], folder: Path | None = None, workers: int | None = None
) -> list[Shot]:
    """Every picture, on all cores; read from a folder where an earlier run left them there."""
    path = None if folder is None else folder / f"truth_v{VERSION}_{_key(wanted)}.npz"
    if path is not None and path.is_file():
        with np.load(path) as kept:
            made = list(zip(*(kept[name] for name in STACKS), strict=True))
    elif len(wanted) < 8:  # less than a process takes to start
        made = [_cast(camera, time) for camera, time in wanted]
    else:  # spawned: whoever calls has threads of a rasteriser
        with ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn")) as pool:
            made = list(pool.map(_cast, *zip(*wanted, strict=True), chunksize=4))
    if path is not None and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
        stacks = zip(STACKS, zip(*made, strict=True), strict=True)
        arrays: dict[str, Any] = {name: np.stack(stack) for name, stack in stacks}
        np.savez_compressed(partial, **arrays)
        partial.replace(path)
    return [Shot(*view, *arrays) for view, arrays in zip(wanted, made, strict=True)]


STACKS = ("pixels", "there", "moving")  # of a file of pictures
Arrays = tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]


def _cast(camera: Pinhole, time: float) -> Arrays:
    shapes, there = shapes_at(time)
    picture = cast(shapes, LIGHT, camera)
    eventful = [a.moving or a.changing or math.isfinite(a.seen[0]) for a in there]
    return (
        np.rint(picture.image * 255).astype(np.uint8),
        picture.coverage.sum(axis=0) >= 0.5,
        picture.coverage[np.array(eventful)].sum(axis=0) >= 0.5,
    )


def _key(wanted: Iterable[tuple[Pinhole, float]]) -> str:
    digest = sha256()
    for camera, time in wanted:
        lens = (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, time)
        digest.update(
            camera.rotation.tobytes() + camera.translation.tobytes() + repr(lens).encode()
        )
    return digest.hexdigest()[:16]
