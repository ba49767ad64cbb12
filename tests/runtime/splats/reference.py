"""Pictures of splats in doubles, slowly, by the formulas alone: the rasteriser's oracle.

One splat after the other over the pixels of the box that its ellipse lies in; nothing is shared
with penstock but the dataclasses. Formulas: Kerbl et al. 2023 (projection, blending), Yang et al.
2024 (motion and weight in time), and, for the footprint "omg4-sentinel", the training code that
OMG4's checkpoints come from, whose field of view was -1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.model import SplatModel
from penstock.runtime.splats.camera import Camera

Doubles = NDArray[np.float64]
LEAST_ALPHA, MOST_ALPHA, LEAST_REST, LEAST_WEIGHT = 1 / 255, 0.99, 1e-4, 0.05


@dataclass
class Splats:
    """n splats with the colours that a camera sees; motion None where they stand still."""

    means: Doubles  # [n, 3]
    covariances: Doubles  # [n, 3, 3]
    opacities: Doubles  # [n]
    colours: Doubles  # [n, 3]
    velocities: Doubles | None = None  # [n, 3]
    t_centers: Doubles | None = None  # [n]
    t_sigmas: Doubles | None = None  # [n]


@dataclass
class Taken:
    """The pixels that take a splat: a box, and which of it."""

    index: int
    box: tuple[slice, slice]
    pixels: NDArray[np.bool_]


@dataclass
class Picture:
    """image [h, w, 3]; rest [h, w], of the background; taken, nearest splat first."""

    image: Doubles
    rest: Doubles
    taken: list[Taken]


def draw(
    model: SplatModel,
    camera: Camera,
    time: float = 0.0,
    *,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    footprint: str = "exact",
    low_pass: float = 0.3,
) -> Doubles:
    """A model's picture [h, w, 3]."""
    splats = splats_of(model, -camera.rotation.T @ camera.translation)
    return picture(
        splats, camera, time, background=background, footprint=footprint, low_pass=low_pass
    ).image


def picture(
    splats: Splats,
    camera: Camera,
    time: float = 0.0,
    *,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    footprint: str = "exact",
    low_pass: float = 0.3,
    taken: list[Taken] | None = None,
) -> Picture:
    """The picture, and which pixels take which splats.

    Args:
        taken: of another picture: these pixels take these splats in this order, whatever the
            thresholds say. What is drawn is then a smooth function of the splats.
    """
    middles, covariances, alphas, depths = footprints(splats, camera, time, footprint, low_pass)
    conics = np.linalg.inv(covariances)
    image = np.zeros((camera.height, camera.width, 3))
    rest = np.ones((camera.height, camera.width))
    live = np.ones((camera.height, camera.width), bool)
    across, down = np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5
    found: list[Taken] = []
    nearest_first = np.argsort(depths, kind="stable")
    order: list[Taken] | list[int] = nearest_first.tolist() if taken is None else taken
    for item in order:
        index = item.index if isinstance(item, Taken) else item
        if isinstance(item, Taken):
            box = item.box
        elif np.isfinite(depths[index]):
            box = _box(middles[index], covariances[index], alphas[index], camera)
        else:
            continue
        dx = across[box[1]] - middles[index, 0]
        dy = down[box[0]][:, None] - middles[index, 1]
        conic = conics[index]
        power = -0.5 * (conic[0, 0] * dx**2 + 2 * conic[0, 1] * dx * dy + conic[1, 1] * dy**2)
        alpha = np.minimum(MOST_ALPHA, alphas[index] * np.exp(power))
        before = rest[box]
        after = before * (1 - alpha)
        if isinstance(item, Taken):
            takes = item.pixels
        else:
            wants = live[box] & (alpha >= LEAST_ALPHA)
            takes = wants & (after >= LEAST_REST)
            live[box] &= ~(wants & ~takes)
            if not takes.any():
                continue
        found.append(Taken(index, box, takes))
        weight = np.where(takes, alpha * before, 0)
        image[box] += weight[:, :, None] * splats.colours[index]
        rest[box] = np.where(takes, after, before)
    image += rest[:, :, None] * np.asarray(background)
    return Picture(image, rest, found)


def footprints(
    splats: Splats, camera: Camera, time: float, footprint: str, low_pass: float
) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """(middles [n, 2], covariances [n, 2, 2], alphas [n], depths [n]: infinite where not drawn)."""
    means, alphas = splats.means, splats.opacities
    seen = np.ones(len(means), bool)
    if splats.velocities is not None:
        assert splats.t_centers is not None and splats.t_sigmas is not None
        away = time - splats.t_centers
        weight = np.exp(-0.5 * (away / splats.t_sigmas) ** 2)
        seen &= weight > LEAST_WEIGHT
        alphas = alphas * weight
        means = means + splats.velocities * away[:, None]
    points = means @ camera.rotation.T + camera.translation
    seen &= points[:, 2] > camera.near
    z = np.where(seen, points[:, 2], 1.0)
    slopes = points[:, :2] / z[:, None]
    middles = slopes * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    sides = np.array([camera.width, camera.height], np.float64)
    if footprint == "omg4-sentinel":
        tangents = np.tan(np.array([-1.0, -1.0]) / 2)
        focals = sides / (2 * tangents)
        limits = 1.3 * tangents
        slopes = np.minimum(limits, np.maximum(-limits, slopes))
    else:
        focals = np.array([camera.fx, camera.fy])
        centre = (sides / 2 - [camera.cx, camera.cy]) / focals
        limits = 1.3 * sides / (2 * focals)
        slopes = np.clip(slopes, centre - limits, centre + limits)
    jacobian = np.zeros((len(means), 2, 3))
    jacobian[:, 0, 0] = focals[0] / z
    jacobian[:, 1, 1] = focals[1] / z
    jacobian[:, :, 2] = -focals * slopes / z[:, None]
    to_screen = jacobian @ camera.rotation
    covariances = to_screen @ splats.covariances @ to_screen.transpose(0, 2, 1)
    covariances += low_pass * np.eye(2)
    return middles, covariances, alphas, np.where(seen, points[:, 2], np.inf)


def _box(middle: Doubles, covariance: Doubles, alpha: float, camera: Camera) -> tuple[slice, slice]:
    """Rows and columns where the splat may cover 1/255."""
    reach = np.sqrt(2 * max(np.log(255 * max(alpha, 1e-300)), 0) * np.diag(covariance)) + 1
    sides = np.array([camera.width, camera.height])
    low = np.clip(np.floor(middle - reach), 0, sides).astype(int)
    high = np.clip(np.ceil(middle + reach) + 1, 0, sides).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


# ---------------------------------------------------------------- of a model


def splats_of(model: SplatModel, eye: Doubles) -> Splats:
    """A model's splats, and their colours seen from a point [3]."""
    w, x, y, z = model.rotations.astype(np.float64).T
    rotation = np.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
    ).transpose(2, 0, 1)
    variances = model.scales.astype(np.float64) ** 2
    covariances = np.einsum("nij,nj,nkj->nik", rotation, variances, rotation)
    means = model.means.astype(np.float64)
    away = means - eye
    directions = away / np.linalg.norm(away, axis=1, keepdims=True)
    functions = harmonics(directions)[:, : model.sh.shape[1]]
    colours = np.maximum(0.5 + np.einsum("nk,nkc->nc", functions, model.sh.astype(np.float64)), 0)
    splats = Splats(means, covariances, model.opacities.astype(np.float64), colours)
    if model.motion is not None:
        splats.velocities = model.motion.velocities.astype(np.float64)
        splats.t_centers = model.motion.t_centers.astype(np.float64)
        splats.t_sigmas = model.motion.t_sigmas.astype(np.float64)
    return splats


def harmonics(directions: Doubles) -> Doubles:
    """The basis [n, 16] at unit directions [n, 3], numbers as Kerbl et al. print them."""
    x, y, z = directions.T
    return np.stack(
        [
            np.full_like(x, 0.28209479177387814),
            -0.4886025119029199 * y,
            0.4886025119029199 * z,
            -0.4886025119029199 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * z * z - x * x - y * y),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * z * z - x * x - y * y),
            0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -0.4570457994644658 * x * (4 * z * z - x * x - y * y),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ],
        axis=1,
    )
