"""What the scene should look like: photos where there are some, else the model's own pictures.

Without photos the uncompressed model is the truth, seen by cameras that go around it. That keeps
what it shows; it cannot mend what it shows wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, FormatError, StorageError, UsageError
from penstock.loaders.splats.model import SplatModel

if TYPE_CHECKING:
    from penstock.export.omg4.rasteriser import Rasteriser
    from penstock.runtime.splats.camera import Camera, View

Floats = NDArray[np.float32]

ORBITS = (-20.0, 5.0, 30.0)  # degrees of elevation
AROUND = 8  # cameras of an orbit
TIMES = 24  # moments of a scene that own views are spread over
WIDTH, HEIGHT = 320, 240
MOST = 1 << 28  # bytes of pictures: all own views, or 16 photos of 1352 x 1014


class Truth:
    """Views and their pictures. What is read from files or drawn is kept, up to `MOST` bytes."""

    def __init__(self, views: Sequence[View], model: SplatModel, rasteriser: Rasteriser) -> None:
        """
        Args:
            views: one with no image shows the model.
            model: uncompressed.

        Raises:
            UsageError: no views; a view of a moving scene without a time.
        """
        if not views:
            raise UsageError("there are no views; give some, or leave them out for own ones")
        if model.dynamic:
            for number, view in enumerate(views):
                if view.time is None or not math.isfinite(view.time):
                    raise UsageError(
                        f"view {number} has time {view.time}, and the scene moves; expected seconds"
                    )
        self.views = tuple(views)
        self.own = all(view.image is None for view in views)
        self._model = model
        self._rasteriser = rasteriser
        self._kept: dict[int, Floats] = {}
        self._room = MOST

    def __len__(self) -> int:
        return len(self.views)

    def picture(self, number: int) -> Floats:
        """Of a view: [h, w, 3], 0 to 1 where it is a photo; not to be written to.

        Raises:
            FormatError, StorageError, UsageError: as `read_picture`.
        """
        found = self._kept.get(number)
        if found is None:
            found = self._made(number)
            in_memory = isinstance(self.views[number].image, np.ndarray)
            if not in_memory and found.nbytes <= self._room:
                found.flags.writeable = False
                self._kept[number] = found
                self._room -= found.nbytes
        return found

    def _made(self, number: int) -> Floats:
        view = self.views[number]
        if view.image is None:
            from penstock.export.omg4.drawing import draw_model

            return draw_model(self._rasteriser, self._model, view.camera, view.time)
        return read_picture(view.image, view.camera)


def read_picture(source: NDArray[np.generic] | Path | str, camera: Camera) -> Floats:
    """[h, w, 3] float32, of an array of bytes or floats or an image's file; RGBA over black.

    Raises:
        UsageError: it is not of the camera's size, or not of these types.
        FormatError: the file is no image.
        StorageError: it cannot be read.
    """
    image = source if isinstance(source, np.ndarray) else _decode(Path(source))
    name = "a view's image" if isinstance(source, np.ndarray) else str(source)
    expected = (camera.height, camera.width)
    if image.ndim != 3 or image.shape[:2] != expected or image.shape[2] not in (3, 4):
        raise UsageError(
            f"{name} has shape {image.shape}; its camera expects {(*expected, 3)}. Give "
            "cameras for the images' size, or scale the images"
        )
    if image.dtype == np.uint8:
        values = image.astype(np.float32) / np.float32(255)
    elif np.issubdtype(image.dtype, np.floating):
        values = image.astype(np.float32)
    else:
        raise UsageError(f"{name} is of {image.dtype}; expected uint8, or floats of 0 to 1")
    if not np.isfinite(values).all():
        raise UsageError(f"{name} has values that are not finite; expected 0 to 1")
    if values.shape[2] == 4:
        values = values[:, :, :3] * values[:, :, 3:]
    return np.ascontiguousarray(values)


def own_views(model: SplatModel, *, width: int = WIDTH, height: int = HEIGHT) -> list[View]:
    """Cameras on three orbits around the model, without images; a moving scene at `TIMES` moments,
    each seen from one of the orbits."""
    from penstock.runtime.splats.camera import View, orbit

    rings = [
        orbit(model, AROUND, width=width, height=height, elevation_degrees=elevation)
        for elevation in ORBITS
    ]
    cameras = [ring[k] for k in range(AROUND) for ring in rings]
    if model.motion is None:
        return [View(camera, None, None) for camera in cameras]
    moments = np.linspace(model.motion.start, model.motion.end, TIMES)
    return [
        View(camera, float(moments[t]), None)
        for t in range(TIMES)
        for camera in cameras[t % 3 :: 3]
    ]


def held_out(views: Sequence[View], every: int = 7) -> tuple[list[View], list[View]]:
    """(the views to train with, every so many-th): what was not looked at measures the loss."""
    train = [view for k, view in enumerate(views) if k % every != every - 1]
    test = [view for k, view in enumerate(views) if k % every == every - 1]
    return (train, test) if test else (list(views), list(views))


def without_image(view: View) -> View:
    """The same camera and time; then the model is the truth."""
    return replace(view, image=None)


def _decode(path: Path) -> NDArray[np.uint8]:
    """[h, w, 3 or 4] of an image's file."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise BackendMissingError(
            "views with image files need Pillow: pip install 'penstock[splats]'"
        ) from None
    try:
        with Image.open(path) as file:
            mode = "RGBA" if "A" in file.getbands() or "transparency" in file.info else "RGB"
            return np.asarray(file.convert(mode))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise FormatError(f"{path}: is not an image that can be read: {error}") from None
    except OSError as error:
        if error.errno is None:  # Pillow's: a file that is cut short
            raise FormatError(f"{path}: the image is damaged: {error}") from None
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from None
