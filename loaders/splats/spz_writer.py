"""Writes SPZ of version 3 (gzip) or 4 (zstd), with the quantization that Niantic's tools have.

For export to other viewers and as the yardstick of our own compression. The bytes are described in
`spz` and `spz_container`.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.loaders.partial_file import partial_file
from penstock.loaders.splats.activations import logarithm
from penstock.loaders.splats.axes import change_axes
from penstock.loaders.splats.file_access import import_zstandard
from penstock.loaders.splats.model import SplatModel, check_model
from penstock.loaders.splats.quaternions import SMALLEST_MAX, keep_smallest
from penstock.loaders.splats.spz import COLOUR_STEP, MAGNITUDE_BITS
from penstock.loaders.splats.spz_container import (
    GZIP_HEADER,
    MAGIC,
    MAX_FRACTION,
    TABLE_ENTRY,
    ZSTD_HEADER,
    Bytes,
    axes_of_code,
)

FRACTION = 12  # bits of positions after the point: steps of a quarter of a millimetre in metres
FIRST_BITS, REST_BITS = 5, 4  # of SH of degree 1, and of higher ones
ZSTD_LEVEL = 19


def write_spz(path: Path, model: SplatModel, version: Literal[3, 4] = 3) -> None:
    """Write static splats. Positions have 12 fractional bits, or as many as reach the farthest.

    Raises:
        BackendMissingError: version 4, and zstandard is not installed.
        FormatError: the model is not one that can be drawn.
        StorageError: the file cannot be written.
        UsageError: the model moves, or is too large for 24-bit positions.
    """
    if model.motion is not None:
        raise UsageError(f"{path}: SPZ has no motion; write a .psplat, or static splats")
    check_model(model, path)
    model = change_axes(model, axes_of_code(path, 4))  # its own inverse
    fraction = _fraction(path, model)
    parts = [
        _positions(model, fraction),
        _bytes(model.opacities * 255.0),
        _bytes(model.sh[:, 0] * (COLOUR_STEP * 255) + 127.5),
        _bytes((logarithm(model.scales) + 10.0) * 16),
        _rotations(model),
        _rest(model),
    ]
    payload = [part.tobytes() for part in parts if part.size]
    numbers = (model.count, model.degree, fraction, 0)
    if version == 3:
        data = GZIP_HEADER.pack(MAGIC, 3, *numbers, 0) + b"".join(payload)
        packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
        frames = [packer.compress(data), packer.flush()]
    else:
        compressor = import_zstandard().ZstdCompressor(level=ZSTD_LEVEL)
        streams = [compressor.compress(part) for part in payload]
        frames = [ZSTD_HEADER.pack(MAGIC, 4, *numbers, len(streams), ZSTD_HEADER.size)]
        pairs = zip(streams, payload, strict=True)
        frames += [TABLE_ENTRY.pack(len(packed), len(whole)) for packed, whole in pairs]
        frames += streams
    with partial_file(path) as (handle, _):
        for frame in frames:
            handle.write(frame)


def _fraction(path: Path, model: SplatModel) -> int:
    """Bits after the point, fewer than `FRACTION` where the scene is over 2 km across."""
    farthest = float(np.abs(model.means).max(initial=0))
    for fraction in range(min(FRACTION, MAX_FRACTION), -1, -1):
        if round(farthest * 2**fraction) < 1 << 23:
            return fraction
    raise UsageError(
        f"{path}: a splat is {farthest:g} from the origin; positions of SPZ reach {(1 << 23) - 1}"
    )


def _bytes(values: NDArray[np.floating]) -> Bytes:
    return np.asarray(np.clip(np.round(values), 0, 255), np.uint8)


def _positions(model: SplatModel, fraction: int) -> Bytes:
    numbers = np.round(model.means.astype(np.float64) * 2**fraction).astype("<i4")
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, 3, 4)[:, :, :3]


def _rotations(model: SplatModel) -> Bytes:
    largest, three = keep_smallest(model.rotations[:, [1, 2, 3, 0]])  # x, y, z, w
    most = (1 << MAGNITUDE_BITS) - 1
    steps = np.minimum(np.floor(np.abs(three) / SMALLEST_MAX * most + 0.5), most)
    fields = steps.astype(np.uint32) | (three < 0).astype(np.uint32) << np.uint32(MAGNITUDE_BITS)
    words = largest.astype(np.uint32) << np.uint32(30)
    words = words | fields[:, 0] << np.uint32(20) | fields[:, 1] << np.uint32(10) | fields[:, 2]
    return np.asarray(words, "<u4")[:, None].view(np.uint8)


def _rest(model: SplatModel) -> Bytes:
    """SH after the first [n, k - 1, 3] as bytes, rounded to steps that leave their top bits."""
    rest = model.sh[:, 1:].astype(np.float64)
    steps = np.full(rest.shape[1], 1 << (8 - REST_BITS))
    steps[:3] = 1 << (8 - FIRST_BITS)
    whole = np.round(rest * 128).astype(np.int64) + 128
    stepped = (whole + steps[:, None] // 2) // steps[:, None] * steps[:, None]
    return np.asarray(np.clip(stepped, 0, 255), np.uint8)
