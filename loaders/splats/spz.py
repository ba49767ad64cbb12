"""Niantic's SPZ, versions 1 to 4: some 20 bytes a splat before compression.

Bytes of an attribute, as https://github.com/nianticlabs/spz has them (the containers are in
`spz_container`): positions 24-bit fixed point, in version 1 float16; scales (ln s + 10) 16; opacity
255 times itself; colour 127.5 + 38.25 f_dc; SH 128 (1 + c), coefficient by coefficient. Rotations
are x, y, z of 8 bits up to version 2 with w left out, from 3 on two bits for the component that is
left out (x first, w last) and three times a sign and nine bits. Frame: x right, y up, z back, where
an extension does not say otherwise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.activations import exponential
from penstock.loaders.splats.axes import change_axes
from penstock.loaders.splats.covariance import blocks
from penstock.loaders.splats.model import SplatModel, check_model, unfilled_model
from penstock.loaders.splats.quaternions import SMALLEST_MAX, expand_smallest
from penstock.loaders.splats.spz_container import (
    REST_COUNTS,
    Bytes,
    SpzHeader,
    read_spz_parts,
)

MAX_DEGREE = 3  # of a model; what a file has of degree 4 is left out
COLOUR_STEP = 0.15  # a colour of 1 is this of a byte's range, which leaves room on both sides
MAGNITUDE_BITS = 9  # of a rotation's component

Doubles = NDArray[np.float64]


def read_spz(path: Path) -> SplatModel:
    """Static splats. Coefficients of degree 4 are left out.

    Raises:
        BackendMissingError: the file is of version 4 and zstandard is not installed.
        FormatError: not SPZ, damaged, cut short, or of another version.
        StorageError: it cannot be read.
        UnsupportedModelError: an extension of a draft changes what the bytes mean.
    """
    header, parts = read_spz_parts(path)
    kept = REST_COUNTS[min(header.degree, MAX_DEGREE)]
    n = header.count
    model = unfilled_model(n, min(header.degree, MAX_DEGREE))
    rows = {name: part.reshape(n, -1) if n else part for name, part in parts.items()}
    for part in blocks(n):
        model.means[part] = _positions(header, rows["positions"][part])
        model.scales[part] = exponential(rows["scales"][part] / 16 - 10)
        model.rotations[part] = _rotations(header, rows["rotations"][part])
        model.opacities[part] = rows["alphas"][part, 0] / np.float32(255)
        model.sh[part, 0] = (rows["colours"][part] / 255 - 0.5) / COLOUR_STEP
        rest = rows["sh"][part].reshape(part.stop - part.start, REST_COUNTS[header.degree], 3)
        model.sh[part, 1:] = (rest[:, :kept] - np.float32(128)) / np.float32(128)
    return check_model(change_axes(model, header.axes), path)


def _positions(header: SpzHeader, rows: Bytes) -> Doubles:
    """[n, 3] of 9 bytes, or 6 in version 1, a splat."""
    if header.version == 1:
        with np.errstate(invalid="ignore"):  # NaN of any kind: the model's check finds it
            return np.ascontiguousarray(rows).view("<f2").astype(np.float64)
    low, middle, high = np.moveaxis(rows.reshape(-1, 3, 3).astype(np.int32), -1, 0)
    numbers = low | middle << 8 | high << 16
    signed = (numbers ^ 0x800000) - 0x800000  # of 24 bits
    return np.asarray(signed * 2.0**-header.fraction, np.float64)


def _rotations(header: SpzHeader, rows: Bytes) -> Doubles:
    """[n, 4], w first, of 4 bytes a splat, or 3 up to version 2."""
    if header.version < 3:
        vector = rows / 127.5 - 1
        return expand_smallest(np.zeros(len(rows), np.intp), vector)
    words = np.ascontiguousarray(rows).view("<u4")[:, 0]
    three = np.stack([_component(words >> np.uint32(shift)) for shift in (20, 10, 0)], axis=1)
    xyzw = expand_smallest((words >> np.uint32(30)).astype(np.intp), three)
    return xyzw[:, [3, 0, 1, 2]]


def _component(words: NDArray[np.uint32]) -> Doubles:
    """A sign and nine bits of magnitude as plus or minus `SMALLEST_MAX` at most."""
    most = (1 << MAGNITUDE_BITS) - 1
    magnitudes = (words & np.uint32(most)) * (SMALLEST_MAX / most)
    negative = (words >> np.uint32(MAGNITUDE_BITS)) & np.uint32(1)
    return np.asarray(np.where(negative, -magnitudes, magnitudes), np.float64)
