"""PlayCanvas' compressed PLY: 16 bytes a splat, quantized between the bounds of its chunk of 256.

Facts: https://github.com/playcanvas/splat-transform (MIT) and the files that SuperSplat writes.
Element `chunk`: the least and greatest position, ln scale and, in newer files, colour. Element
`vertex`, four uint32 from the highest bit on: position 11, 10, 11; scale 11, 10, 11; rotation 2
(which component is left out, w first) and 3 times 10; colour 8, 8, 8 and the linear opacity, 8.
Element `sh`, where there is one: bytes f_rest_*, channel by channel. The frame is the model's.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError
from penstock.loaders.splats.activations import colour_to_sh, exponential, from_channel_major
from penstock.loaders.splats.inria_ply import rest_columns
from penstock.loaders.splats.model import SplatModel, check_model, unfilled_model
from penstock.loaders.splats.ply_file import PlyElement, PlyFile, read_ply_header
from penstock.loaders.splats.quaternions import expand_smallest

CHUNK = 256  # splats that share bounds
SPLATS = 64 * CHUNK  # read at a time
PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
_AXES, _CHANNELS = ("x", "y", "z"), ("r", "g", "b")
POSITIONS = [f"{side}_{axis}" for side in ("min", "max") for axis in _AXES]
SCALES = [f"{side}_scale_{axis}" for side in ("min", "max") for axis in _AXES]
COLOURS = [f"{side}_{channel}" for side in ("min", "max") for channel in _CHANNELS]
SH_RANGE = 8.0  # its bytes span -4 to 4

Words = NDArray[np.uint32]
Doubles = NDArray[np.float64]


def is_compressed_ply(ply: PlyFile) -> bool:
    """Whether this header is of such a file."""
    vertex = ply.elements.get("vertex")
    return "chunk" in ply.elements and vertex is not None and vertex.has(PACKED[0])


def read_compressed_ply(path: Path) -> SplatModel:
    """Static splats of a compressed PLY file.

    Raises:
        FormatError: damaged, cut short, of other columns, or with bounds that are not finite.
        StorageError: it cannot be read.
    """
    return model_of_compressed_ply(read_ply_header(path))


def model_of_compressed_ply(ply: PlyFile) -> SplatModel:
    """As `read_compressed_ply`, of a header that was read."""
    chunk, vertex = ply.element("chunk"), ply.element("vertex")
    _check(ply, chunk, vertex)
    groups = [POSITIONS, SCALES, *([COLOURS] if chunk.has(COLOURS[0]) else [])]
    bounds = ply.read_groups(chunk, groups)
    n = vertex.count
    model = unfilled_model(n, 0)
    for begin, rows in ply.blocks(vertex, SPLATS):
        part = slice(begin, begin + len(rows))
        chunks = (begin + np.arange(len(rows))) // CHUNK
        colours = np.ascontiguousarray(rows["packed_color"])
        rgb = np.stack([_share(colours, 24, 8), _share(colours, 16, 8), _share(colours, 8, 8)], 1)
        if len(bounds) == 3:
            rgb = _between(bounds[2][chunks], rgb)
        model.means[part] = _between(bounds[0][chunks], _thirds(rows["packed_position"]))
        model.scales[part] = exponential(_between(bounds[1][chunks], _thirds(rows["packed_scale"])))
        model.rotations[part] = _rotations(rows["packed_rotation"])
        model.opacities[part] = _share(colours, 0, 8)
        model.sh[part, 0] = colour_to_sh(rgb)
    if "sh" in ply.elements:
        model = _with_rest(ply, model)
    return check_model(model, ply.path)


def _check(ply: PlyFile, chunk: PlyElement, vertex: PlyElement) -> None:
    ply.check_columns(chunk, [*POSITIONS, *SCALES])
    ply.check_columns(vertex, PACKED)
    for name in PACKED:
        if vertex.row[name].kind != "u" or vertex.row[name].itemsize != 4:
            raise FormatError(f"{ply.path}: property '{name}' is {vertex.row[name]}, expected uint")
    if chunk.count != -(-vertex.count // CHUNK):
        raise FormatError(
            f"{ply.path}: {chunk.count} chunks for {vertex.count} splats; expected one for each "
            f"{CHUNK} of them"
        )


def _with_rest(ply: PlyFile, model: SplatModel) -> SplatModel:
    """With the coefficients of element `sh`: 0 is -4, 255 is 4, others the middle of their step."""
    element = ply.element("sh")
    names = rest_columns(ply, element)
    if element.count != model.count:
        raise FormatError(
            f"{ply.path}: element 'sh' has {element.count} rows for {model.count} splats"
        )
    for name in names:
        if element.row[name].kind != "u" or element.row[name].itemsize != 1:
            raise FormatError(
                f"{ply.path}: property '{name}' is {element.row[name]}, expected uchar"
            )
    steps = ply.read(element, names)
    shares = np.where(steps <= 0, 0, np.where(steps >= 255, 1, (steps + 0.5) / 256))
    sh = from_channel_major((shares - 0.5) * SH_RANGE, model.sh[:, 0])
    return SplatModel(model.means, model.scales, model.rotations, model.opacities, sh)


def _share(words: Words, shift: int, bits: int) -> Doubles:
    """A field of so many bits as 0 to 1."""
    most = (1 << bits) - 1
    return np.asarray((words >> np.uint32(shift)) & np.uint32(most), np.float64) / most


def _thirds(words: Words) -> Doubles:
    """[n, 3] of fields of 11, 10 and 11 bits."""
    return np.stack([_share(words, 21, 11), _share(words, 11, 10), _share(words, 0, 11)], axis=1)


def _between(bounds: NDArray[np.float32], shares: Doubles) -> Doubles:
    """[n, 3] between the lower and upper bounds [n, 6]."""
    with np.errstate(invalid="ignore"):  # bounds not finite: the model's check finds them
        low, high = bounds[:, :3].astype(np.float64), bounds[:, 3:].astype(np.float64)
        return np.asarray(low * (1 - shares) + high * shares, np.float64)


def _rotations(words: Words) -> Doubles:
    three = np.stack([_share(words, 20, 10), _share(words, 10, 10), _share(words, 0, 10)], axis=1)
    return expand_smallest((words >> np.uint32(30)).astype(np.intp), (three - 0.5) * math.sqrt(2))
