"""A folder of images as a dataset: decoded, turned upright, resized, normalised, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.export.dataset import Preprocessing, Sample, real_range
from penstock.export.label_file import label_files
from penstock.loaders.tensor_graph import TensorSpec

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif",
})  # fmt: skip


@dataclass(frozen=True)
class ImageInput:
    """Where a model wants its pixels.

    Attributes:
        channels: 1 or 3.
        channels_first: NCHW, else NHWC.
    """

    spec: TensorSpec
    height: int
    width: int
    channels: int
    channels_first: bool
    preprocessing: Preprocessing

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], preprocessing: Preprocessing) -> ImageInput:
        """The layout, from the shape of the model's only input.

        Raises:
            UsageError: there are more, or its shape is not that of one image.
        """
        if len(inputs) != 1:
            names = ", ".join(f"'{spec.name}'" for spec in inputs)
            raise UsageError(f"the model has inputs {names}: images fit one; give an .npz instead")
        spec = inputs[0]
        shape = spec.shape or ()
        batch = shape[:-3]
        firsts = len(shape) in (3, 4) and shape[-3] in (1, 3)
        lasts = len(shape) in (3, 4) and shape[-1] in (1, 3)
        if not (firsts or lasts) or any(isinstance(dim, int) and dim != 1 for dim in batch):
            raise UsageError(
                f"input '{spec.name}' is {spec}, expected one image: 1 x 3 x height x width or "
                "1 x height x width x 3, 3 or 1 channels; give an .npz instead"
            )
        channels_first = firsts and not (lasts and shape[-1] == 3 and shape[-3] == 1)
        sides = shape[-2:] if channels_first else shape[-3:-1]
        channels = shape[-3] if channels_first else shape[-1]
        assert isinstance(channels, int)
        height, width = (
            dim if isinstance(dim, int) else preprocessing.size and preprocessing.size[axis]
            for axis, dim in enumerate(sides)
        )
        if not height or not width:
            raise UsageError(
                f"input '{spec.name}' is {spec}: height and width are open; say which in the "
                "preprocessing: size=(height, width), or --image-size"
            )
        if preprocessing.size not in (None, (height, width)):
            raise UsageError(
                f"size is {preprocessing.size}, and input '{spec.name}' is {spec}: leave the size "
                "(--image-size) out"
            )
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            if len(values) not in (1, channels):
                raise UsageError(f"{name} is {values}; expected one number or {channels}")
        return cls(spec, height, width, channels, channels_first, preprocessing)

    def array(self, image: Any) -> NDArray[Any]:
        """An upright RGB image of Pillow as the input, of its shape with a batch of 1."""
        from PIL import Image, ImageOps

        how = self.preprocessing
        if self.channels == 1:
            image = image.convert("L")
        size = (self.width, self.height)
        if how.resize == "centre-crop":
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        else:
            image = image.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(image).reshape(self.height, self.width, self.channels)
        if how.colours == "BGR":
            pixels = pixels[:, :, ::-1]
        values = self._values(pixels)
        if self.channels_first:
            values = values.transpose(2, 0, 1)
        rank = len(self.spec.shape or ())
        return np.ascontiguousarray(values[None] if rank == 4 else values)

    def _values(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        dtype, how = np.dtype(self.spec.dtype), self.preprocessing
        if dtype.kind in "iu" and self.spec.quantization is None:
            if how.value_range is None and how.mean == (0.0,) and how.std == (1.0,):
                return pixels.astype(dtype)  # a model that takes pixels
            raise UsageError(
                f"input '{self.spec.name}' takes {dtype} pixels; leave range, mean and std out"
            )
        low, high = how.value_range or real_range(self.spec)
        scaled = low + pixels.astype(np.float32) * np.float32((high - low) / 255)
        values = (scaled - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
        return np.asarray(values, dtype if dtype.kind == "f" else np.float32)


@dataclass(frozen=True)
class ImageFolder:
    """See `open_dataset`."""

    folder: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    input: ImageInput

    @classmethod
    def open(
        cls,
        folder: Path,
        inputs: Sequence[TensorSpec],
        labels: Path | None,
        preprocessing: Preprocessing,
    ) -> ImageFolder:
        """Find the files; none is read yet."""
        from penstock.runtime.caption.pillow import need_pillow

        need_pillow()
        image_input = ImageInput.of(inputs, preprocessing)
        files = sorted(
            Path(root) / name
            for root, _, names in os.walk(folder)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        )
        if not files:
            kinds = " ".join(sorted(SUFFIXES))
            raise UsageError(f"{folder}: no images in it or under it; looked for {kinds}")
        if labels is None:
            return cls(folder, tuple(files), None, image_input)
        labelled = label_files(labels, folder, files)
        return cls(folder, tuple(labelled), tuple(labelled.values()), image_input)

    @property
    def name(self) -> str:
        return str(self.folder)

    def __len__(self) -> int:
        return len(self.files)

    def samples(self, limit: int | None = None) -> Iterator[Sample]:
        for index, file in enumerate(self.files[:limit]):
            arrays = {self.input.spec.name: self.input.array(read_image(file))}
            yield Sample(str(file), arrays, None if self.labels is None else self.labels[index])


def read_image(file: Path) -> Any:
    """The first frame as a Pillow image: RGB, upright; transparent is white.

    Raises:
        FormatError: it cannot be decoded. StorageError: it cannot be read.
    """
    from PIL import Image

    from penstock.runtime.caption.photo import read_photo

    return Image.fromarray(read_photo(file))
