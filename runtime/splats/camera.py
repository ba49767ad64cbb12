"""Cameras: where they stand, how they see, and the files that tell of them.

World and camera have x right, y down, z forward, as COLMAP and INRIA have them. A point p of the
world is rotation p + translation in the camera's frame, and falls on the pixel (fx x / z + cx,
fy y / z + cy); the middle of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penstock import _native
from penstock.errors import UsageError
from penstock.loaders.splats.model import SplatModel

Doubles = NDArray[np.float64]

NEAR = 0.2  # world units; INRIA's: nothing nearer is drawn
MOST_SIDE = 16384  # pixels
MOST_FRAMES = 100_000  # of an orbit, and of a file of cameras
UP = (0.0, -1.0, 0.0)
NEAREST, NEARLY_ALL = 0.9, 0.995  # shares of the splats, from the middle
ROOM = 1.4  # times the radius of NEAREST: no more is taken in, to hold nearly all


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    Attributes:
        rotation: [3, 3], world to camera.
        translation: [3].
        fx, fy, cx, cy: pixels.
        width, height: pixels.
        near: world units; what is nearer along z is not drawn.

    Raises:
        UsageError: a number that no camera has, or a rotation that is none.
    """

    rotation: Doubles
    translation: Doubles
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    near: float = NEAR

    def __post_init__(self) -> None:
        rotation = np.array(self.rotation, np.float64)
        translation = np.array(self.translation, np.float64)
        if rotation.shape != (3, 3) or translation.shape != (3,):
            raise UsageError(
                f"a camera has a rotation {rotation.shape} and a translation {translation.shape}; "
                "expected (3, 3) and (3,)"
            )
        if not (np.isfinite(rotation).all() and np.isfinite(translation).all()):
            raise UsageError("a camera's rotation or translation is not finite")
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
            raise UsageError("a camera's rotation is not orthonormal, or a reflection")
        for name in ("fx", "fy", "cx", "cy", "near"):
            value = getattr(self, name)
            if not math.isfinite(value) or (name in ("fx", "fy", "near") and value <= 0):
                raise UsageError(f"a camera's {name} is {value}; expected a finite number over 0")
        _check_sides(self.width, self.height)
        rotation.flags.writeable = translation.flags.writeable = False
        object.__setattr__(self, "rotation", rotation)
        object.__setattr__(self, "translation", translation)

    @property
    def eye(self) -> Doubles:
        """Where it stands in the world [3]."""
        return -self.rotation.T @ self.translation

    def native(self) -> _native.SplatCamera:
        """As the rasteriser takes it."""
        return _native.SplatCamera(
            rotation=self.rotation.ravel().tolist(),
            translation=self.translation.tolist(),
            fx=self.fx,
            fy=self.fy,
            cx=self.cx,
            cy=self.cy,
            width=int(self.width),
            height=int(self.height),
            near_plane=self.near,
        )


@dataclass(frozen=True, eq=False)
class View:
    """What a camera sees, or is to see.

    Attributes:
        time: seconds; None of a scene that does not move.
        image: the picture [h, w, 3] (bytes, or floats of 0 to 1), its file, or None.
    """

    camera: Camera
    time: float | None = None
    image: Path | NDArray[np.generic] | None = None


# ---------------------------------------------------------------- placed


def look_at(
    eye: ArrayLike,
    target: ArrayLike,
    *,
    up: ArrayLike = UP,
    width: int,
    height: int,
    fov_degrees: float = 50.0,
    near: float = NEAR,
) -> Camera:
    """A camera at `eye` [3] that has `target` [3] in the middle of its picture.

    Args:
        up: [3], what is upward in the picture; where it is along the view, another is taken.
        fov_degrees: of the picture's width, over 0 and under 180.

    Raises:
        UsageError: eye and target are one point, or a number that no camera has.
    """
    place = np.asarray(eye, np.float64)
    forward = np.asarray(target, np.float64) - place
    length = float(np.linalg.norm(forward))
    if not (math.isfinite(length) and length > 0):
        raise UsageError(f"a camera at {place} cannot look at {target!r}: give another point")
    forward = forward / length
    down = -np.asarray(up, np.float64)
    right = np.cross(down, forward)
    if not np.linalg.norm(right) > 1e-6 * np.linalg.norm(down):
        right = np.cross([0.0, 0.0, 1.0], forward)
        if not np.linalg.norm(right) > 1e-6:
            right = np.array([1.0, 0.0, 0.0])
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return _centred(rotation, place, width, height, fov_degrees, near)


def orbit(
    model: SplatModel,
    frames: int,
    *,
    width: int,
    height: int,
    fov_degrees: float = 50.0,
    azimuth_degrees: float = 0.0,
    elevation_degrees: float = 15.0,
    distance: float | None = None,
    turn_degrees: float = 360.0,
) -> list[Camera]:
    """Cameras on a circle around a model, as `orbit_around` its `extent`."""
    centre, radius = extent(model)
    return orbit_around(
        centre,
        radius,
        frames,
        width=width,
        height=height,
        fov_degrees=fov_degrees,
        azimuth_degrees=azimuth_degrees,
        elevation_degrees=elevation_degrees,
        distance=distance,
        turn_degrees=turn_degrees,
    )


def orbit_around(
    centre: ArrayLike,
    radius: float,
    frames: int,
    *,
    width: int,
    height: int,
    fov_degrees: float = 50.0,
    azimuth_degrees: float = 0.0,
    elevation_degrees: float = 15.0,
    distance: float | None = None,
    turn_degrees: float = 360.0,
) -> list[Camera]:
    """Cameras on a circle around a point [3], each with it in the middle of its picture.

    Args:
        radius: world units, of the ball that fills the picture where `distance` is None.
        frames: cameras; the first at `azimuth_degrees`, the others spread over `turn_degrees`.
        azimuth_degrees: 0 looks along +z, 90 along -x.
        elevation_degrees: how far up, towards -y, -90 to 90.

    Raises:
        UsageError: a number out of its range.
    """
    if not 1 <= frames <= MOST_FRAMES:
        raise UsageError(f"an orbit has {frames} frames; expected 1 to {MOST_FRAMES}")
    angles = {"azimuth": azimuth_degrees, "elevation": elevation_degrees, "turn": turn_degrees}
    for name, degrees in angles.items():
        if not math.isfinite(degrees):
            raise UsageError(f"an orbit's {name} is {degrees} degrees; expected a finite number")
    if abs(elevation_degrees) > 90:
        raise UsageError(f"the elevation is {elevation_degrees} degrees; expected -90 to 90")
    _check_picture(width, height, fov_degrees)
    if distance is None:
        half = math.tan(math.radians(fov_degrees) / 2) * min(1.0, height / width)
        distance = radius / math.sin(math.atan(half))
    if not (math.isfinite(distance) and distance > 0):
        raise UsageError(f"an orbit's distance is {distance}; expected a finite number over 0")
    cameras = []
    elevation = math.radians(elevation_degrees)
    for k in range(frames):
        azimuth = math.radians(azimuth_degrees + turn_degrees * k / frames)
        right = np.array([math.cos(azimuth), 0.0, math.sin(azimuth)])
        forward = np.array(
            [
                -math.sin(azimuth) * math.cos(elevation),
                math.sin(elevation),
                math.cos(azimuth) * math.cos(elevation),
            ]
        )
        rotation = np.stack([right, np.cross(forward, right), forward])
        eye = np.asarray(centre, np.float64) - distance * forward
        near = min(NEAR, distance / 20)
        cameras.append(_centred(rotation, eye, width, height, fov_degrees, near))
    return cameras


def extent(model: SplatModel) -> tuple[Doubles, float]:
    """(middle [3], radius) of a ball that holds nearly all means, around the middle of the box that
    does; the origin and 1 of a model without splats.

    So objects that stand alone are seen whole, to the head and the feet. Where few splats lie far
    away, as the sky around a captured scene, the ball is one around the median that does not
    follow them.
    """
    return extent_of(model.means)


def extent_of(means: NDArray[np.floating]) -> tuple[Doubles, float]:
    """As `extent`, of the means [n, 3] of splats."""
    if not len(means):
        return np.zeros(3), 1.0
    exact = means.astype(np.float64)
    low, median, high = np.quantile(exact, [1 - NEARLY_ALL, 0.5, NEARLY_ALL], axis=0)
    middle = (low + high) / 2
    nearly_all = np.quantile(np.linalg.norm(exact - middle, axis=1), NEARLY_ALL)
    most = ROOM * np.quantile(np.linalg.norm(exact - median, axis=1), NEAREST)
    centre, radius = (middle, nearly_all) if nearly_all <= most else (median, most)
    return centre, max(float(radius), 1e-3)


def _centred(
    rotation: Doubles, eye: Doubles, width: int, height: int, fov_degrees: float, near: float
) -> Camera:
    _check_picture(width, height, fov_degrees)
    focal = width / (2 * math.tan(math.radians(fov_degrees) / 2))
    return Camera(
        rotation, -rotation @ eye, focal, focal, width / 2, height / 2, width, height, near
    )


def _check_picture(width: int, height: int, fov_degrees: float) -> None:
    _check_sides(width, height)
    if not 0 < fov_degrees < 180:
        raise UsageError(f"the field of view is {fov_degrees} degrees; expected over 0, under 180")


def _check_sides(width: int, height: int) -> None:
    if not (1 <= width <= MOST_SIDE and 1 <= height <= MOST_SIDE):
        raise UsageError(
            f"a picture of {width} x {height} pixels; expected 1 to {MOST_SIDE} each way"
        )


def from_transforms(path: Path) -> list[View]:
    """Views of a transforms.json (NeRF's data sets, Blender's exporters, nerfstudio).

    Raises:
        StorageError, FormatError, BackendMissingError: as `camera_file.read_transforms`.
    """
    from penstock.runtime.splats.camera_file import read_transforms

    return read_transforms(Path(path))
