"""Data that models are calibrated and evaluated on: a folder of images, an .npz, or noise.

Samples are read one at a time, so memory does not grow with their number.

    dataset = open_dataset("photos/", model.inputs, labels=Path("labels.csv"))
    for sample in dataset.samples(limit=100):
        model.run(sample.arrays, floats=True)
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.loaders.tensor_graph import TensorSpec


@dataclass(frozen=True)
class Sample:
    """One run of the model.

    Attributes:
        name: of the file, or `npz[3]`: for errors.
        arrays: one for each input, of its shape with a batch of 1. Quantized inputs get floats,
            for `TensorModel.run(..., floats=True)`.
        label: class number; None where there is none.
    """

    name: str
    arrays: dict[str, NDArray[Any]]
    label: int | None = None


class Dataset(Protocol):
    """Samples in a fixed order; it can be gone through any number of times."""

    @property
    def name(self) -> str:
        """Where they come from, for people."""
        ...

    @property
    def labels(self) -> tuple[int, ...] | None:
        """The class of each sample, in order; None where there are none."""
        ...

    def __len__(self) -> int: ...

    def samples(self, limit: int | None = None) -> Iterator[Sample]:
        """The first `limit` samples, or all, each read when it is asked for.

        Raises:
            FormatError: one cannot be decoded; it is named.
            UsageError: one has NaN or infinity.
            StorageError: the file cannot be read.
        """
        ...


@dataclass(frozen=True)
class Preprocessing:
    """From a photo to an input: value = (low + pixel / 255 * (high - low) - mean) / std.

    Attributes:
        value_range: (low, high) that black and white become before mean and std. None: what the
            input's own quantization covers, else (0, 1).
        mean, std: of each channel, in the order of `colours`; one number stands for all.
        colours: order of the channels, of inputs that have three.
        resize: `stretch` ignores the aspect ratio, `centre-crop` cuts off the longer sides.
        size: (height, width) of inputs whose shape leaves it open.
    """

    value_range: tuple[float, float] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    colours: Literal["RGB", "BGR"] = "RGB"
    resize: Literal["stretch", "centre-crop"] = "stretch"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Raises UsageError: a value is out of its range."""
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise UsageError(f"mean {self.mean} and std {self.std} must be finite numbers")
        if min(self.std, default=0) <= 0:
            raise UsageError(f"std is {self.std}, expected numbers above 0")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise UsageError(f"value range {self.value_range} is not (low, high)")
        if self.size is not None and min(self.size) < 1:
            raise UsageError(f"size {self.size} is not (height, width) in pixels")


def open_dataset(
    path: str | os.PathLike[str],
    inputs: Sequence[TensorSpec],
    *,
    labels: Path | None = None,
    preprocessing: Preprocessing | None = None,
) -> Dataset:
    """A folder of images, or an .npz with an array for each input and, if wanted, `labels`.

    Args:
        inputs: of the model, as `TensorModel.inputs` gives them.
        labels: CSV `file,label` with a heading, for a folder: names with or without their suffix,
            and class numbers. Images that it does not name are left out.
        preprocessing: of images; None: values from 0 to 1, or the range that the input's
            quantization covers.

    Raises:
        UsageError: nothing is there, it does not fit the inputs, or labels do not fit the files.
        FormatError: the .npz or the CSV is damaged.
        BackendMissingError: images, and Pillow is not installed.
    """
    path = Path(path)
    if path.is_dir():
        from penstock.export.image_folder import ImageFolder

        return ImageFolder.open(path, inputs, labels, preprocessing or Preprocessing())
    if not path.exists():
        raise UsageError(f"{path}: not found; give a folder of images or an .npz file")
    if labels is not None:
        raise UsageError(f"{labels}: labels of an .npz stand in it, as the array 'labels'")
    if preprocessing is not None:
        raise UsageError(f"{path}: preprocessing is for images; an .npz holds the model's inputs")
    from penstock.export.npz_dataset import NpzDataset

    return NpzDataset.open(path, inputs)


def synthetic(inputs: Sequence[TensorSpec], count: int, seed: int = 0) -> Dataset:
    """Random inputs, always the same for a seed, for when there is no data.

    Floats are uniform over 0 to 1, or over what the input's quantization covers; integers are 0
    and 1. What a model makes of noise says that it runs, not how good it is: reports must say so.

    Raises:
        UsageError: an input's shape is open but for its first dimension, or it takes no numbers.
    """
    return SyntheticDataset(tuple(inputs), count, seed)


@dataclass(frozen=True)
class SyntheticDataset:
    """See `synthetic`."""

    inputs: tuple[TensorSpec, ...]
    count: int
    seed: int

    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"{self.count} samples; expected 1 or more")
        for spec in self.inputs:
            sample_shape(spec)

    @property
    def name(self) -> str:
        return f"random inputs, seed {self.seed}"

    def __len__(self) -> int:
        return self.count

    def samples(self, limit: int | None = None) -> Iterator[Sample]:
        for index in range(self.count if limit is None else min(limit, self.count)):
            rng = np.random.default_rng((self.seed, index))
            arrays = {spec.name: _noise(spec, rng) for spec in self.inputs}
            yield Sample(f"random[{index}]", arrays)


def sample_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The input's shape for one sample: an open first dimension is 1.

    Raises:
        UsageError: another one is open too.
    """
    if spec.shape is None or not all(isinstance(dim, int) for dim in spec.shape[1:]):
        raise UsageError(
            f"input '{spec.name}' is {spec}: its shape is open; give data, an .npz with arrays "
            "of the shape that is wanted"
        )
    return tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape)


def real_range(spec: TensorSpec) -> tuple[float, float]:
    """Lowest and highest number that a quantized input can stand for; of another (0, 1)."""
    if spec.quantization is None or np.dtype(spec.dtype).kind not in "iu":
        return 0.0, 1.0
    limits = np.iinfo(spec.dtype)
    ends = np.array([limits.min, limits.max], spec.dtype)
    scale, zero = spec.quantization.scales[0], spec.quantization.zero_points[0]
    low, high = ((ends.astype(np.float64) - zero) * scale).tolist()
    return low, high


def _noise(spec: TensorSpec, rng: np.random.Generator) -> NDArray[Any]:
    shape = sample_shape(spec)
    if spec.dtype in ("bool", "string", "complex64", "complex128"):
        raise UsageError(f"input '{spec.name}' takes {spec.dtype}: give data, an .npz")
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f" or spec.quantization is not None:
        values = rng.uniform(*real_range(spec), shape)
        return values.astype(dtype if dtype.kind == "f" else np.float32)
    return rng.integers(0, 2, shape).astype(dtype)
