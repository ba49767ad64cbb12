"""Files of cameras: the transforms.json of NeRF's data sets, Blender's exporters, nerfstudio."""

from __future__ import annotations

import json
import math
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import BackendMissingError, FormatError, StorageError
from penstock.runtime.splats.camera import MOST_FRAMES, MOST_SIDE, Camera, Doubles, View

MOST_FILE = 64 << 20  # bytes
MOST_AWAY = 1e12  # world units
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


def read_transforms(path: Path) -> list[View]:
    """Its views, one a frame.

    `transform_matrix` takes a camera's frame (x right, y up, z backward) to the world; the world
    stays as the file has it. Numbers of a frame go before those of the whole file.

    Raises:
        StorageError: the file cannot be read.
        FormatError: it is no such file; a lens with distortion.
        BackendMissingError: it has no sizes, and Pillow is not there to ask the images.
    """
    try:
        with open(path, "rb") as handle:
            data = handle.read(MOST_FILE + 1)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(data) > MOST_FILE:
        raise FormatError(f"{path}: has over {MOST_FILE} bytes; expected a file of cameras")
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON: {error}") from None
    frames = whole.get("frames") if isinstance(whole, dict) else None
    if not isinstance(frames, list) or not 1 <= len(frames) <= MOST_FRAMES:
        raise FormatError(f"{path}: expected an object with 1 to {MOST_FRAMES} 'frames'")
    return [_Frame(path, number, frame, whole).view() for number, frame in enumerate(frames)]


class _Frame:
    """A frame of a file of cameras; errors name file, frame and field."""

    def __init__(self, path: Path, number: int, frame: Any, whole: dict[str, Any]) -> None:
        self.path, self.number = path, number
        if not isinstance(frame, dict):
            raise self.wrong("", "an object", frame)
        self.fields = whole | frame

    def wrong(self, name: str, expected: str, seen: object) -> FormatError:
        field = f", field '{name}'" if name else ""
        return FormatError(
            f"{self.path}: frame {self.number}{field} is {reprlib.repr(seen)}; expected {expected}"
        )

    def number_of(self, name: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        """None where the file does not have it."""
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, "a number", value)
        try:
            found = float(value)
        except OverflowError:  # a whole number of 400 digits
            found = math.inf
        if not (math.isfinite(found) and low <= found <= high):
            raise self.wrong(name, f"a finite number, {low:g} to {high:g}", value)
        return found

    def view(self) -> View:
        image = self._image()
        width, height = self._size(image)
        fx, fy = self._focal(width, height)
        for name in DISTORTION:
            amount = self.number_of(name)
            if amount:
                raise self.wrong(name, "no distortion: undistort the images first", amount)
        cx, cy = self.number_of("cx", -1e6, 1e6), self.number_of("cy", -1e6, 1e6)
        rotation, translation = self._pose()
        camera = Camera(
            rotation,
            translation,
            fx,
            fy,
            width / 2 if cx is None else cx,
            height / 2 if cy is None else cy,
            width,
            height,
        )
        return View(camera, self.number_of("time", -1e9, 1e9), image)

    def _pose(self) -> tuple[Doubles, Doubles]:
        name = "transform_matrix"
        given = self.fields.get(name)
        try:
            matrix = np.array(given, np.float64)
        except (TypeError, ValueError, OverflowError):
            raise self.wrong(name, "4 rows of 4 numbers", given) from None
        if matrix.shape not in ((4, 4), (3, 4)) or not np.isfinite(matrix).all():
            raise self.wrong(name, "4 rows of 4 finite numbers", given)
        axes = matrix[:3, :3] * np.array([1.0, -1.0, -1.0])  # y down, z forward
        if np.abs(axes).max() > 10 or np.abs(matrix).max() > MOST_AWAY:
            raise self.wrong(name, "a rotation and a place", given)
        left, lengths, right = np.linalg.svd(axes)
        nearest = left @ right
        if np.abs(lengths - 1).max() > 0.05 or np.linalg.det(nearest) < 0:
            raise self.wrong(name, "a rotation in its first three columns", given)
        rotation: Doubles = nearest.T
        return rotation, -rotation @ matrix[:3, 3]

    def _focal(self, width: int, height: int) -> tuple[float, float]:
        """Pixels; of one angle or length, the other's is the same."""
        focals: list[float | None] = []
        for name, angle, pixels in (
            ("fl_x", "camera_angle_x", width),
            ("fl_y", "camera_angle_y", height),
        ):
            focal = self.number_of(name, 1e-3, 1e7)
            radians = self.number_of(angle, 1e-4, math.pi - 1e-4)
            if focal is None and radians is not None:
                focal = pixels / (2 * math.tan(radians / 2))
            focals.append(focal)
        fx, fy = focals[0] or focals[1], focals[1] or focals[0]
        if fx is None or fy is None:
            raise self.wrong("camera_angle_x", "an angle in radians, or fl_x in pixels", None)
        return fx, fy

    def _image(self) -> Path | None:
        """The file that the frame names, beside the file of cameras or under it."""
        name = self.fields.get("file_path")
        if name is None:
            return None
        if not isinstance(name, str) or not name or "\0" in name:
            raise self.wrong("file_path", "the name of an image", name)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise self.wrong("file_path", f"a name under {self.path.parent}", name)
        found = self.path.parent / name
        if not found.suffix:  # Blender's exporter leaves it out
            found = found.with_name(f"{found.name}.png")
        return found

    def _size(self, image: Path | None) -> tuple[int, int]:
        width, height = self.number_of("w", 1, MOST_SIDE), self.number_of("h", 1, MOST_SIDE)
        if width is not None and height is not None:
            if width != int(width) or height != int(height):
                raise self.wrong("w", "whole pixels", (width, height))
            return int(width), int(height)
        if image is None:
            raise self.wrong("w", "pixels of the image (w and h), or an image in file_path", None)
        return _image_size(image)


def _image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels, of the image's header."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise BackendMissingError(
            f"{path}: its size is asked with Pillow: pip install 'penstock[splats]'"
        ) from None
    try:
        with Image.open(path) as file:
            width, height = file.size
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise FormatError(f"{path}: is not an image that can be read: {error}") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not (1 <= width <= MOST_SIDE and 1 <= height <= MOST_SIDE):
        raise FormatError(f"{path}: has {width} x {height} pixels; expected at most {MOST_SIDE}")
    return width, height
