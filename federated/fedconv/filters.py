"""The learned filters: one weight-normalised kernel for every position of every tensor.

FedConv takes the weights of a layer for an image whose pixels are output by input channels. A
convolution with a kernel of N - N' + 1 makes N' of N channels (valid, stride 1); a transposed
convolution with the same kernel restores exactly N. Each spatial position of a convolution is an
image of its own, and so is each position that a channel has on a linear layer's flattened input;
the kernels of all positions are applied in one grouped call. (The release, `lemingshen/FedConv`,
notes section 1.2; it loops over positions and flattens linear layers.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.federated.arrays import Arrays
from penstock.federated.fedconv.profiles import Profile
from penstock.federated.submodels import Axis, Kind, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

FILTERED: tuple[Kind, ...] = ("conv", "linear", "bias", "norm")
PARTS = ("kernel", "gain", "scale", "shift")
POSITIVE, NEGATIVE = 0.85, 0.001  # slopes of the release's modified leaky ReLU
FFT_FROM = 65  # columns of a kernel: beyond, products of spectra are faster than sums


def correlate(images: Tensor, kernels: Tensor) -> Tensor:
    """Valid correlation of each image with its own kernel: it shrinks by the kernel's size less 1.

    Args:
        images: float32 [positions, rows, columns].
        kernels: float32 [positions, kernel rows, kernel columns].
    """
    import torch

    if kernels.shape[1] == 1 and kernels.shape[2] >= FFT_FROM:
        columns = images.shape[2]
        spectrum = torch.fft.rfft(images) * torch.fft.rfft(kernels, n=columns).conj()
        whole: Tensor = torch.fft.irfft(spectrum, n=columns)
        return whole[:, :, : columns - kernels.shape[2] + 1]
    made: Tensor = torch.conv2d(images[None], kernels[:, None], groups=len(images))
    return made[0]


def spread(images: Tensor, kernels: Tensor) -> Tensor:
    """Transposed convolution of each image with its own kernel: it grows by the same number."""
    import torch

    if kernels.shape[1] == 1 and kernels.shape[2] >= FFT_FROM:
        columns = images.shape[2] + kernels.shape[2] - 1
        spectrum = torch.fft.rfft(images, n=columns) * torch.fft.rfft(kernels, n=columns)
        grown: Tensor = torch.fft.irfft(spectrum, n=columns)
        return grown
    made: Tensor = torch.conv_transpose2d(images[None], kernels[:, None], groups=len(images))
    return made[0]


def filtered(
    images: Tensor,
    tensor: TensorSpec,
    filters: Mapping[str, Tensor],
    profile: Profile,
    *,
    grow: bool,
) -> Tensor:
    """What the filters of one tensor make of its images.

    A scale and a shift a position come first (the release's 1 x 1 convolution with bias; for
    convolutions beside the weights themselves), then the kernel, then the non-linearity.

    Args:
        images: float32 [positions, rows, columns].
        filters: `kernel` [positions, rows, columns], and `gain`, `scale` and `shift` [positions],
            each under `part_name`.
        grow: transposed: from the sub-model to the full model.
    """
    from torch.nn.functional import leaky_relu, normalize

    kernel, gain, scale, shift = (filters[part_name(tensor, part)] for part in PARTS)
    projected = scale[:, None, None] * images + shift[:, None, None]
    if tensor.kind == "conv" or profile.start == "slice":
        projected = images + projected
    kernels = gain[:, None, None] * normalize(kernel.flatten(1)).view_as(kernel)
    result = spread(projected, kernels) if grow else correlate(projected, kernels)
    for _ in range(profile.nonlinearity):
        result = POSITIVE * leaky_relu(result, NEGATIVE / POSITIVE)
    return result


# ---------------------------------------------------------------- shapes


def part_name(tensor: TensorSpec, part: str) -> str:
    """Name of one of a tensor's filter parameters."""
    return f"{tensor.name}:{part}"


def image_axes(tensor: TensorSpec, flatten: bool) -> tuple[Axis, Axis]:
    """Rows and columns of a tensor's images; a vector is one row."""
    pair = tensor.axes[:2] if len(tensor.axes) > 1 else (Axis(1), tensor.axes[0])
    rows, columns = (replace(a, channels=a.size, span=1) if flatten else a for a in pair)
    return rows, columns


def to_images(value: Tensor, tensor: TensorSpec, flatten: bool) -> Tensor:
    """A tensor as images [positions, row channels, column channels]; the other way: `from_images`.

    Positions are those within a channel's span and those of the convolution's kernel.
    """
    rows, columns = image_axes(tensor, flatten)
    parts = value.reshape(rows.channels, rows.span, columns.channels, columns.span, -1)
    return parts.permute(1, 3, 4, 0, 2).reshape(-1, rows.channels, columns.channels)


def from_images(images: Tensor, tensor: TensorSpec, flatten: bool) -> Tensor:
    """Images as the tensor that they are of."""
    rows, columns = image_axes(tensor, flatten)
    parts = images.reshape(rows.span, columns.span, -1, rows.channels, columns.channels)
    return parts.permute(3, 0, 4, 1, 2).reshape(tensor.shape)


def kernel_shape(full: TensorSpec, sub: TensorSpec, flatten: bool) -> tuple[int, int, int]:
    """Positions, and N - N' + 1 rows and columns: 1 where an axis does not shrink."""
    rows, columns = image_axes(full, flatten)
    narrow_rows, narrow_columns = image_axes(sub, flatten)
    positions = int(np.prod(full.shape)) // (rows.channels * columns.channels)
    return (
        positions,
        rows.channels - narrow_rows.channels + 1,
        columns.channels - narrow_columns.channels + 1,
    )


def filter_shapes(spec: ModelSpec, ratio: float, flatten: bool) -> dict[str, tuple[int, ...]]:
    """Shape of every filter parameter of one ratio; none at ratio 1, where nothing is filtered."""
    if ratio == 1.0:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for full, sub in zip(spec, spec.at(ratio), strict=True):
        if full.kind in FILTERED:
            kernel = kernel_shape(full, sub, flatten)
            for part in PARTS:
                shapes[part_name(full, part)] = kernel if part == "kernel" else kernel[:1]
    return shapes


def new_filters(
    spec: ModelSpec, ratio: float, profile: Profile, rng: np.random.Generator
) -> Arrays:
    """Filters before any training.

    "slice": a random direction at gain 0, so that the correction is exactly zero and moves in any
    direction. "random": uniform as torch initialises a convolution, gain its norm.
    """
    filters: Arrays = {}
    for name, shape in filter_shapes(spec, ratio, profile.flatten_linear).items():
        part = name.rpartition(":")[2]
        if part == "kernel":
            bound = 1 / np.sqrt(shape[1] * shape[2])
            kernel = rng.uniform(-bound, bound, shape).astype(np.float32)
            filters[name] = kernel
            gain = np.linalg.norm(kernel.reshape(len(kernel), -1), axis=1).astype(np.float32)
        elif profile.start == "slice":
            filters[name] = np.zeros(shape, np.float32)
        elif part == "gain":
            filters[name] = gain
        else:
            filters[name] = rng.uniform(-1, 1, shape).astype(np.float32)
    return filters
