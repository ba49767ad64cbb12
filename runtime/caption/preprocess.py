"""A photo as the encoder's input: resized, scaled, channels first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError
from penstock.runtime.caption.manifest import ImageInput


def prepare(image: NDArray[np.uint8], wanted: ImageInput) -> NDArray[np.float32]:
    """uint8 [height, width, 3] to float32 [1, 3, size, size].

    Raises:
        BackendMissingError: Pillow is not installed.
    """
    resized = resize(image, wanted)
    mean = np.array(wanted.mean, np.float32) * 255
    std = np.array(wanted.std, np.float32) * 255
    return np.ascontiguousarray(((resized - mean) / std).transpose(2, 0, 1)[None])


def resize(image: NDArray[np.uint8], wanted: ImageInput) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] to uint8 [size, size, 3], with antialiasing."""
    try:
        from PIL import Image
    except ImportError:
        raise BackendMissingError(
            "photos are resized by Pillow, which is not installed; install it with: "
            "pip install 'penstock[caption]'"
        ) from None
    size, (height, width) = wanted.size, image.shape[:2]
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if wanted.resize == "shortest-edge":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    picture = Image.fromarray(image).resize((size, size), filters[wanted.resample], box=box)
    return np.asarray(picture)
