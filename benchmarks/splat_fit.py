"""A 4D model of the truth's scene, made and trained on the CPU alone.

It begins with splats on the surfaces: flat, as far apart as asked for, moving on straight lines for
as long as the true path is nearly straight, and of the colours that the training cameras see. Then
`penstock.export.omg4.refinement` trains it against the training cameras' pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.splat_truth import Floats, Pinhole, Shape, albedo_of, normals_of, shade
from benchmarks.splat_truth_scene import DURATION, FPS, LIGHT, Actor, Shot, actors
from benchmarks.splat_truth_surface import Sample, place, sample
from penstock.loaders.splats.harmonics import C0, basis
from penstock.loaders.splats.model import SplatModel, SplatMotion, check_model
from penstock.loaders.splats.quaternions import from_matrices

if TYPE_CHECKING:
    from penstock.export.report import ProgressCallback
    from penstock.runtime.splats.camera import Camera, View

STEP = 1e-3  # seconds, of differences by time
FOR_EVER = 50 * DURATION  # a t_sigma that does not fade while the scene lasts
LONGEST, SHORTEST = 0.4, 0.5 / FPS  # seconds between neighbours in time of what moves
CHANGE = 0.08  # seconds between neighbours of what changes its colour, comes or goes
OVERLAP = 0.75  # t_sigma, of the time between neighbours: together they cover nearly evenly
TANGENT, NORMAL = 0.62, 0.15  # scales, of the distance between neighbours
OPACITY = 0.95
RIDGE = 0.1  # of the harmonics past the first, against as many observations as there are cameras


@dataclass(frozen=True)
class FitSettings:
    """How dense the first splats are, and how long they are trained.

    Attributes:
        spacing: of splats on a surface, in the scene's units (its floor is 4.4 across).
        tolerance: how far a straight line may be off the true path, in the same.
        degree: of the harmonics.
        steps: of training. batch: pictures a step. rates: of learning, over those of refinement.
    """

    spacing: float = 0.03
    tolerance: float = 0.008
    degree: int = 2
    steps: int = 1500
    batch: int = 2
    rates: float = 3.0
    seed: int = 0


def surface_model(settings: FitSettings, cameras: Sequence[Pinhole]) -> SplatModel:
    """The model before it is trained."""
    eyes = np.stack([camera.eye for camera in cameras])
    parts = [
        _slice(actor, moment, sigma, found, settings.degree, eyes)
        for actor in actors()
        for found in [sample(actor.at(_first(actor)), settings.spacing)]
        for moment, sigma in moments(actor, found, settings.tolerance)
    ]
    names = ("means", "scales", "rotations", "sh", "velocities", "t_centers", "t_sigmas")
    a = {n: np.concatenate([part[n] for part in parts]).astype(np.float32) for n in names}
    motion = SplatMotion(
        a["velocities"], a["t_centers"], a["t_sigmas"], start=0.0, end=DURATION, fps=FPS
    )
    opacities = np.full(len(a["means"]), OPACITY, np.float32)
    model = SplatModel(a["means"], a["scales"], a["rotations"], opacities, a["sh"], motion)
    return check_model(model, "the truth's surfaces")


def fit(
    shots: Sequence[Shot],
    settings: FitSettings,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> SplatModel:
    """A model that was trained on these pictures."""
    from penstock.export.omg4.refinement import refine
    from penstock.export.omg4.settings import CompressionSettings

    cameras = list({id(shot.camera): shot.camera for shot in shots}.values())
    model = surface_model(settings, cameras)
    chosen = CompressionSettings(
        refine_steps=settings.steps,
        batch=settings.batch,
        rates=settings.rates,
        settling=False,  # it may move what should stand still, as any other trainer does
        seed=settings.seed,
        threads=threads,
    )
    return refine(model, [as_view(shot) for shot in shots], chosen, progress)


def as_camera(camera: Pinhole) -> Camera:
    """The truth's camera as Penstock's."""
    from penstock.runtime.splats.camera import Camera

    return Camera(
        rotation=camera.rotation,
        translation=camera.translation,
        fx=camera.fx,
        fy=camera.fy,
        cx=camera.cx,
        cy=camera.cy,
        width=camera.width,
        height=camera.height,
    )


def as_view(shot: Shot) -> View:
    """A picture of the truth as something to train on."""
    from penstock.runtime.splats.camera import View

    return View(as_camera(shot.camera), shot.time, shot.pixels)


# ---------------------------------------------------------------- time


def moments(actor: Actor, found: Sample, tolerance: float) -> Iterator[tuple[float, float]]:
    """t_center and t_sigma of the straight pieces that an actor's path is cut into."""
    begin, end = max(0.0, actor.seen[0]), min(DURATION, actor.seen[1])
    apart = _apart(actor, found, tolerance)
    if apart is None:
        yield DURATION / 2, FOR_EVER
        return
    count = max(1, math.ceil((end - begin) / apart))
    apart = (end - begin) / count
    for n in range(count):
        yield begin + (n + 0.5) * apart, OVERLAP * apart


def _apart(actor: Actor, found: Sample, tolerance: float) -> float | None:
    """Seconds between neighbours in time; None: one piece does for ever."""
    if actor.changing or math.isfinite(actor.seen[0]):
        return CHANGE
    if not actor.moving:
        return None
    swiftest = 0.0
    for time in np.linspace(0, DURATION, 33):
        before, now, after = (_points(actor, found, time + d) for d in (-STEP, 0.0, STEP))
        bends = np.linalg.norm(before - 2 * now + after, axis=1) / STEP**2
        swiftest = max(swiftest, float(bends.max()))
    # Off by a t^2 / 2; a piece counts for most of what is seen to somewhat over half the distance.
    longest = math.sqrt(2 * tolerance / max(swiftest, 1e-12)) / 0.8
    if longest > 2 * DURATION:
        return None
    return min(LONGEST, max(SHORTEST, longest))


def _first(actor: Actor) -> float:
    return max(0.0, actor.seen[0])


def _points(actor: Actor, found: Sample, time: float) -> Floats:
    return place(actor.at(time), found)[0]


# ---------------------------------------------------------------- one actor at one time


def _slice(
    actor: Actor, time: float, sigma: float, found: Sample, degree: int, eyes: Floats
) -> dict[str, NDArray[np.floating]]:
    """The arrays of splats on an actor's surface as it is at a time."""
    shape = actor.at(time)
    points, along = place(shape, found)
    normals = normals_of(shape, points)
    velocity = (_points(actor, found, time + STEP) - _points(actor, found, time - STEP)) / (
        2 * STEP
    )
    first = along - np.einsum("ni,ni->n", along, normals)[:, None] * normals
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    axes = np.stack([first, np.cross(normals, first), normals], axis=2)  # columns
    least = min(found.apart)
    scales = np.array([TANGENT * found.apart[0], TANGENT * found.apart[1], NORMAL * least])
    n = len(points)
    return {
        "means": points,
        "scales": np.broadcast_to(scales, (n, 3)),
        "rotations": from_matrices(axes),
        "sh": harmonics_seen(shape, points, normals, eyes, degree),
        "velocities": velocity,
        "t_centers": np.full(n, time),
        "t_sigmas": np.full(n, sigma),
    }


def harmonics_seen(
    shape: Shape, points: Floats, normals: Floats, eyes: Floats, degree: int
) -> Floats:
    """Coefficients [n, k, 3] that come nearest to what the eyes [m, 3] see of points [n, 3].

    Least squares around the colour without highlight, over the eyes in front of the surface; what
    no eye sees is that colour.
    """
    albedo = albedo_of(shape, points)
    plain = np.minimum(
        albedo
        * (LIGHT.ambient + LIGHT.diffuse * np.maximum(normals @ LIGHT.direction, 0))[:, None],
        1.0,
    )
    k = (degree + 1) ** 2
    left = np.tile(np.diag([1e-3] + [RIDGE * len(eyes)] * (k - 1)), (len(points), 1, 1))
    right = np.zeros((len(points), k, 3))
    for eye in eyes:
        to = points - eye
        to = to / np.linalg.norm(to, axis=1, keepdims=True)
        b = basis(to, degree) * (np.einsum("ni,ni->n", to, normals) < 0)[:, None]
        seen = shade(points, normals, albedo, shape.paint, LIGHT, eye) - plain
        left += b[:, :, None] * b[:, None, :]
        right += b[:, :, None] * seen[:, None, :]
    found: Floats = np.linalg.solve(left, right)
    found[:, 0] += (plain - 0.5) / C0
    return found
