"""antimatter15's .splat: 32 bytes a splat and no header.

Position, 3 float32; scale, 3 float32, linear; colour and opacity, 4 uint8, linear; quaternion,
4 uint8, w first, 128 as 0. https://github.com/antimatter15/splat. The frame is the model's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penstock.errors import FormatError
from penstock.loaders.splats.activations import colour_to_sh
from penstock.loaders.splats.file_access import open_file, take
from penstock.loaders.splats.model import (
    MAX_SPLATS,
    SplatModel,
    check_model,
    unfilled_model,
    unit_rotations,
)

RECORD = np.dtype(
    [("mean", "<f4", 3), ("scale", "<f4", 3), ("colour", "u1", 4), ("rotation", "u1", 4)]
)
BLOCK = 1 << 16  # splats that are read at a time


def count_dot_splat(path: Path) -> int:
    """How many splats the file has.

    Raises:
        FormatError: its size is no multiple of 32 bytes.
        StorageError: it cannot be read.
    """
    with open_file(path) as (_, size):
        count, rest = divmod(size, RECORD.itemsize)
    if rest or count > MAX_SPLATS:
        raise FormatError(
            f"{path}: has {size} bytes; a .splat file has a multiple of {RECORD.itemsize}, and not "
            f"more than {MAX_SPLATS} splats. It is cut short or of another format"
        )
    return count


def read_dot_splat(path: Path) -> SplatModel:
    """Static splats, of SH degree 0.

    Raises:
        FormatError: its size is no multiple of 32 bytes, or values are not finite.
        StorageError: it cannot be read.
    """
    count = count_dot_splat(path)
    model = unfilled_model(count, 0)
    with open_file(path) as (handle, size):
        for begin in range(0, count, BLOCK):
            part = slice(begin, min(begin + BLOCK, count))
            nbytes = (part.stop - begin) * RECORD.itemsize
            rows = np.frombuffer(take(path, handle, size, nbytes, "a block of splats"), RECORD)
            model.means[part] = rows["mean"]
            model.scales[part] = rows["scale"]
            model.rotations[part] = unit_rotations(rows["rotation"].astype(np.float64) - 128)
            model.opacities[part] = rows["colour"][:, 3] / np.float32(255)
            model.sh[part, 0] = colour_to_sh(rows["colour"][:, :3] / 255)
    return check_model(model, path)
