"""A model as the viewer's page takes it: arrays that become WebGL textures as they are.

    offset 0    4 bytes   'PSVW'
           4    uint32    version, 1
           8    uint32    n: bytes of the header, a multiple of 16
          12    uint32    0
          16    n bytes   JSON, padded with spaces
      16 + n    arrays, at the offsets that the header's `arrays` gives from here

    places     float32 [count, 4]   x, y, z, t_sigma (0 in a static model)
    shapes     uint32  [count, 4]   quaternion w x y z as 16-bit fractions of 32767; then the ln of
                                    the scales and the opacity as half floats
    tints      uint32  [count, 2]   the first coefficients of red, green, blue, and 0, as halves
    motions    float32 [count, 4]   velocity, t_center; not in a static model
    harmonics  uint32  [planes, count, 4]   the other coefficients, red green blue by turns, as
                                    bytes whose 127 is `sh_scales` of their degree, cut there;
                                    degree 1 to 3

Little-endian; what is smaller than a word fills it from its lowest bits. 104 bytes a moving splat
of degree 3, 40 a static one of degree 0.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.loaders.splats.model import SplatModel

MAGIC, VERSION = b"PSVW", 1
ALIGNMENT = 16
HALF_MOST = 65504.0
LEAST_SCALE = 1e-20  # whose logarithm stands for 0, too
LEAST_HARMONIC = 1e-30  # below it a whole degree is taken for 0
USUAL_SHARE = 0.999  # of the splats, whose coefficients say what is usual
MOST_OVER_USUAL = 2.0  # Laplace's distribution, which trained ones have about, does not get there


def page_model(model: SplatModel, facts: dict[str, Any]) -> bytes:
    """The model in the page's layout.

    Args:
        facts: more for the header: name, where to look at first.
    """
    scales = sh_scales(model)
    arrays = page_arrays(model, scales)
    places, offset = {}, 0
    for name, array in arrays.items():
        places[name] = {"offset": offset, "bytes": array.nbytes}
        offset += array.nbytes
    motion = model.motion
    header = {
        **facts,
        "count": model.count,
        "degree": model.degree,
        "sh_scales": scales,
        "dynamic": motion is not None,
        "start": 0.0 if motion is None else motion.start,
        "end": 0.0 if motion is None else motion.end,
        "fps": None if motion is None else motion.fps,
        "arrays": places,
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    head = struct.pack("<4sIII", MAGIC, VERSION, len(text), 0)
    return b"".join([head, text, *(array.data for array in arrays.values())])


def page_arrays(model: SplatModel, scales: list[float]) -> dict[str, NDArray[Any]]:
    """The arrays by name, in the order of the file; each a multiple of 8 bytes a splat.

    Args:
        scales: `sh_scales` of the model.
    """
    n, motion = model.count, model.motion
    places = np.zeros((n, 4), "<f4")
    places[:, :3] = model.means
    shapes = np.empty((n, 4), "<u4")
    turned = np.clip(np.rint(model.rotations * np.float32(32767)), -32767, 32767)
    shapes[:, :2] = np.ascontiguousarray(turned.astype("<i2")).view("<u4")
    logs = np.log(np.maximum(model.scales, LEAST_SCALE))
    shapes[:, 2:] = _halves(np.column_stack([logs, model.opacities]))
    tints = _halves(np.column_stack([model.sh[:, 0, :], np.zeros(n, np.float32)]))
    arrays: dict[str, NDArray[Any]] = {"places": places, "shapes": shapes, "tints": tints}
    if motion is not None:
        places[:, 3] = motion.t_sigmas
        motions = np.empty((n, 4), "<f4")
        motions[:, :3], motions[:, 3] = motion.velocities, motion.t_centers
        arrays["motions"] = motions
    if model.degree:
        arrays["harmonics"] = _harmonics(model, scales)
    return arrays


def sh_scales(model: SplatModel) -> list[float]:
    """What the largest byte stands for in degree 1, 2 and 3; 0 where there is none.

    The largest coefficient, but not for the sake of a few splats: one coefficient of 50 among those
    of 0.1 would make all others 0. What is over twice the usual is cut.
    """
    found = []
    for degree in (1, 2, 3):
        part = model.sh[:, degree**2 : (degree + 1) ** 2]
        sizes = np.abs(part).max(axis=(1, 2)) if part.size else np.zeros(0, np.float32)
        sizes = sizes[sizes >= LEAST_HARMONIC]  # the others stay 0
        if not len(sizes):
            found.append(0.0)
            continue
        usual = float(np.quantile(sizes, USUAL_SHARE, method="lower"))  # never the largest of two
        found.append(min(float(sizes.max()), MOST_OVER_USUAL * usual))
    return found


def _harmonics(model: SplatModel, scales: list[float]) -> NDArray[Any]:
    """Coefficients past the first as signed bytes, sixteen to a texel: uint32 [planes, n, 4]."""
    n, coefficients = model.count, model.sh.shape[1] - 1
    planes = -(-coefficients * 3 // 16)
    bytes_of = np.zeros((n, planes * 16), np.int8)
    for degree, scale in enumerate(scales, start=1):
        if scale < LEAST_HARMONIC:
            continue
        first, last = degree**2, (degree + 1) ** 2
        part = np.clip(model.sh[:, first:last], -scale, scale) * np.float32(127 / scale)
        columns = slice((first - 1) * 3, (last - 1) * 3)
        bytes_of[:, columns] = np.clip(np.rint(part), -127, 127).reshape(n, -1)
    words = bytes_of.view("<u4").reshape(n, planes, 4)
    return np.ascontiguousarray(words.transpose(1, 0, 2))


def _halves(values: NDArray[np.floating]) -> NDArray[Any]:
    """[n, 2 m] numbers as half floats, two to a word: [n, m]."""
    cut = np.clip(values, -HALF_MOST, HALF_MOST)
    return np.ascontiguousarray(cut.astype("<f2")).view("<u4")
