"""OMG4's implicit appearance: small networks that turn a splat's place and six numbers into colour.

    place   = (contracted mean, time), 16 octaves of sine and cosine each    4 -> 128
    common  = net "cont" of place                                            128 -> 64 -> 13
    dc      = net "dc" of (common, 3 static features)                        16 -> 64 -> 3
    rest    = net "view" of (common, 3 view features)                        16 -> 64 -> 3 (k - 1)
    opacity = sigmoid of net "opacity" of (common, 3 static features)        16 -> 64 -> 1

The paper (arXiv 2510.03857) evaluates them at each frame's time. Here it is once, at each splat's
own t_center: 21,376 multiplications a splat are too many for a processor in every frame.

Layout, float16: of each net the first matrix [64, inputs] row by row, then the second
[outputs, 64]; no biases. "frame": the scene's middle x, y, z and radius, its start and duration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

OCTAVES, HIDDEN, COMMON = 16, 64, 13
PLACE = 4 * 2 * OCTAVES
FEATURES = 6  # 3 static, 3 view
LEAK = 0.01  # of the hidden layers' negative side; "cont" has none
BLOCK = 1 << 11  # splats at a time: more are no faster
BLOCK_BYTES = BLOCK * 1280 + (1 << 17)  # at most: temporary arrays, and the nets as float32
FRAME = 6
COEFFICIENTS = {0: 1, 1: 4, 2: 9, 3: 16}


@dataclass(frozen=True)
class Net:
    """Two matrices with a bend between them.

    Attributes:
        first: [64, inputs]. second: [outputs, 64].
        leak: slope of the bend's negative side.
    """

    first: Floats
    second: Floats
    leak: float

    def __call__(self, inputs: Floats) -> Floats:
        """[n, inputs] -> [n, outputs]."""
        result: Floats = bend(inputs @ self.first.T, self.leak) @ self.second.T
        return result

    def flat(self) -> NDArray[np.float16]:
        """As it is stored."""
        return np.concatenate([self.first.ravel(), self.second.ravel()]).astype(np.float16)


@dataclass(frozen=True)
class AppearanceNets:
    """The four nets and where the scene is.

    Attributes:
        frame: [6] middle x, y, z, radius over 0, start, duration over 0.
        degree: of the harmonics, 0 to 3.
    """

    cont: Net
    dc: Net
    view: Net
    opacity: Net
    frame: Doubles
    degree: int

    def arrays(self) -> dict[str, NDArray[np.float16]]:
        """What a file has of them, by name."""
        found = {
            "cont": self.cont.flat(),
            "dc": self.dc.flat(),
            "opacity": self.opacity.flat(),
            "frame": self.frame.astype(np.float16),
        }
        return found | ({"view": self.view.flat()} if self.degree else {})


def net_shapes(degree: int) -> dict[str, tuple[int, int, float]]:
    """(inputs, outputs, leak) of each net."""
    rest = 3 * (COEFFICIENTS[degree] - 1)
    return {
        "cont": (PLACE, COMMON, 0.0),
        "dc": (COMMON + 3, 3, LEAK),
        "view": (COMMON + 3, rest, LEAK),
        "opacity": (COMMON + 3, 1, LEAK),
    }


def read_nets(
    arrays: Mapping[str, NDArray[np.float16]], degree: int, source: object
) -> AppearanceNets:
    """The nets of a file.

    Args:
        source: where they come from; errors begin with it.

    Raises:
        FormatError: one is missing, of another length, or not finite; a radius or a duration that
            is not over 0.
    """
    nets = {}
    for name, (inputs, outputs, leak) in net_shapes(degree).items():
        size = HIDDEN * (inputs + outputs)
        if outputs == 0:
            nets[name] = Net(
                np.zeros((HIDDEN, inputs), np.float32), np.zeros((0, HIDDEN), np.float32), leak
            )
            continue
        values = _array(arrays, name, size, source)
        first = values[: HIDDEN * inputs].reshape(HIDDEN, inputs)
        nets[name] = Net(first, values[HIDDEN * inputs :].reshape(outputs, HIDDEN), leak)
    frame = _array(arrays, "frame", FRAME, source).astype(np.float64)
    if frame[3] <= 0 or frame[5] <= 0:
        raise FormatError(
            f"{source}: net 'frame' has radius {frame[3]:g} and duration {frame[5]:g}; expected "
            "more than 0; the file is damaged"
        )
    return AppearanceNets(nets["cont"], nets["dc"], nets["view"], nets["opacity"], frame, degree)


def evaluate(
    nets: AppearanceNets,
    means: NDArray[np.floating],
    t_centers: NDArray[np.floating] | None,
    features: NDArray[np.floating],
    out: tuple[Floats, Floats] | None = None,
) -> tuple[Floats, Floats]:
    """(sh [n, k, 3], opacities [n]) of splats with means [n, 3] and features [n, 6].

    Blocks begin at multiples of `BLOCK`: matrices of other numbers of rows round otherwise.

    Args:
        t_centers: [n], seconds; None in a static scene.
        out: that are filled and returned; None: new ones.
    """
    n = len(means)
    k = COEFFICIENTS[nets.degree]
    if out is None:
        out = np.empty((n, k, 3), np.float32), np.empty(n, np.float32)
    sh, opacities = out
    for begin in range(0, n, BLOCK):
        part = slice(begin, min(begin + BLOCK, n))
        times = None if t_centers is None else t_centers[part]
        own = np.asarray(features[part], np.float32)
        common = nets.cont(place(nets.frame, means[part], times))
        static = np.concatenate([common, own[:, :3]], axis=1)
        sh[part, 0] = nets.dc(static)
        opacities[part] = sigmoid(nets.opacity(static)[:, 0])
        if k > 1:
            seen = np.concatenate([common, own[:, 3:]], axis=1)
            sh[part, 1:] = nets.view(seen).reshape(-1, k - 1, 3)
    return sh, opacities


def place(
    frame: Doubles, means: NDArray[np.floating], t_centers: NDArray[np.floating] | None
) -> Floats:
    """What net "cont" sees [n, 128]: of x, y, z and time, one after another, 16 octaves from
    pi up, of each the sine and the cosine.

    Space is contracted: what lies outside of the unit ball comes between 1 and 2 (mip-NeRF 360).
    """
    x = (np.asarray(means, np.float64) - frame[:3]) / frame[3]
    length = np.linalg.norm(x, axis=1, keepdims=True)
    far = np.maximum(length, 1)
    x = np.where(length > 1, (2 - 1 / far) * (x / far), x) / 4 + 0.5
    if t_centers is None:
        time = np.zeros(len(x))
    else:
        time = (np.asarray(t_centers, np.float64) - frame[4]) / frame[5]
    angles = math.pi * np.concatenate([x, time[:, None]], axis=1)  # [n, 4]
    sine: NDArray[np.floating] = np.sin(angles)
    cosine: NDArray[np.floating] = np.cos(angles)
    octaves = np.empty((len(x), 4, OCTAVES, 2), np.float32)
    for octave in range(OCTAVES):
        octaves[:, :, octave, 0], octaves[:, :, octave, 1] = sine, cosine
        sine, cosine = 2 * sine * cosine, 1 - 2 * sine * sine
    return octaves.reshape(len(x), PLACE)


def bend(values: Floats, leak: float) -> Floats:
    """Each value, or leak times it, 0 to 1, where it is under 0."""
    bent = np.float32(leak) * values
    result: Floats = np.maximum(values, bent, out=bent)
    return result


def sigmoid(values: Floats) -> Floats:
    result: Floats = np.reciprocal(1 + np.exp(-np.clip(values, -30, 30)))
    return result


def _array(
    arrays: Mapping[str, NDArray[np.float16]], name: str, size: int, source: object
) -> Floats:
    values = arrays.get(name)
    if values is None or values.shape != (size,):
        seen = "is missing" if values is None else f"has shape {values.shape}"
        raise FormatError(
            f"{source}: net {name!r} {seen}; expected {size} numbers; the file is damaged or newer"
        )
    if not np.isfinite(values).all():
        raise FormatError(f"{source}: net {name!r} has a number that is not finite; write it again")
    return values.astype(np.float32)
