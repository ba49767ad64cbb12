"""Splats of "Real-Time 4D Gaussian Splatting" as they are trained, and as a model.

A splat has a mean in space and time, four scales, two quaternions, an opacity, and a colour whose
spherical harmonics have up to three bands of time: c_k + cos(2 pi dt / T) c_(k + K) + cos(4 pi dt /
T) c_(k + 2 K), with T the scene's length. A model's colours do not change, so the bands are added
up: exact at the splat's own centre, where both cosines are 1, and wrong by `band_losses` later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError
from penstock.loaders.splats.activations import exponential, sigmoid
from penstock.loaders.splats.covariance import blocks, slice_rotors
from penstock.loaders.splats.harmonics import C0
from penstock.loaders.splats.model import (
    SEEN_SIGMAS,
    SH_COUNTS,
    Floats,
    SplatModel,
    SplatMotion,
    check_model,
    refuse,
)

MAX_BANDS = 3
MAX_LOG_SCALE = 88.0  # of what float32 holds


@dataclass(frozen=True)
class Rotors:
    """Trained parameters of n splats, as checkpoints have them.

    Attributes:
        xyz: [n, 3]; t: [n], seconds.
        scales: [n, 4], natural logarithms, of x, y, z and t before the rotation.
        left, right: [n, 4], quaternions of any length, w first.
        logits: [n], of opacities.
        sh: [n, bands K, 3], K of 1, 4, 9, 16.
        bands: of time.
        start, end: of the scene, seconds; fps where known.
    """

    xyz: Floats
    t: Floats
    scales: Floats
    left: Floats
    right: Floats
    logits: Floats
    sh: Floats
    bands: int
    start: float
    end: float
    fps: float | None = None


def model_of_rotors(rotors: Rotors, source: object) -> SplatModel:
    """The model whose splats look the same, but for the colours' change with time.

    Raises:
        FormatError: wrong shapes, values that are not finite, a quaternion of zeros.
    """
    _check(rotors, source)
    sliced = slice_rotors(exponential(rotors.scales), _unit(rotors.left), _unit(rotors.right))
    motion = SplatMotion(
        sliced.velocities, rotors.t, sliced.t_sigmas, rotors.start, rotors.end, rotors.fps
    )
    n, coefficients, _ = rotors.sh.shape
    bands = rotors.sh.reshape(n, rotors.bands, coefficients // rotors.bands, 3)
    with np.errstate(over="ignore"):  # the model's check finds it
        sh = bands.sum(axis=1)
    model = SplatModel(
        means=rotors.xyz,
        scales=sliced.scales,
        rotations=sliced.rotations,
        opacities=sigmoid(rotors.logits),
        sh=sh,
        motion=motion,
    )
    return check_model(model, source)


@dataclass(frozen=True)
class BandLosses:
    """By how much a colour that should change with time is wrong at the end of its splat's life.

    Attributes:
        mean, largest: over the splats, of the base colour, 0 to 1, in the worst channel.
    """

    mean: float
    largest: float


def band_losses(rotors: Rotors, t_sigmas: NDArray[np.floating]) -> BandLosses:
    """What the model's colours lost.

    Args:
        t_sigmas: [n], of the model.
    """
    n, coefficients, _ = rotors.sh.shape
    if rotors.bands == 1 or not n:
        return BandLosses(0.0, 0.0)
    wave = 2 * np.pi / max(rotors.end - rotors.start, 1e-9)
    angles = wave * SEEN_SIGMAS * np.asarray(t_sigmas, np.float64)
    angles = np.minimum(angles, np.pi)  # farther away the first cosine comes back
    change = np.zeros((n, 3))
    for band in range(1, rotors.bands):
        base = rotors.sh[:, band * (coefficients // rotors.bands)]
        change += (np.cos(band * angles) - 1)[:, None] * base
    wrong = C0 * np.abs(change).max(axis=1)
    return BandLosses(float(wrong.mean()), float(wrong.max()))


def coefficients_known(count: int) -> int | None:
    """How many bands of time so many coefficients of a channel are, None where no whole number."""
    for bands in range(1, MAX_BANDS + 1):
        if count % bands == 0 and count // bands in SH_COUNTS:
            return bands
    return None


def _unit(quaternions: Floats) -> NDArray[np.float64]:
    out = np.empty(quaternions.shape)
    for part in blocks(len(quaternions)):
        q = quaternions[part].astype(np.float64)
        out[part] = q / np.linalg.norm(q, axis=1, keepdims=True)
    return out


def _check(rotors: Rotors, source: object) -> None:
    n = len(rotors.xyz)
    k = rotors.sh.shape[1] if rotors.sh.ndim == 3 else 0
    if not 1 <= rotors.bands <= MAX_BANDS or k not in (rotors.bands * c for c in SH_COUNTS):
        raise FormatError(
            f"{source}: sh has shape {rotors.sh.shape} in {rotors.bands} bands of time; expected "
            "1, 4, 9 or 16 coefficients a band, and 1 to 3 bands"
        )
    shapes = {"xyz": (n, 3), "t": (n,), "scales": (n, 4), "left": (n, 4), "right": (n, 4)}
    shapes |= {"logits": (n,), "sh": (n, k, 3)}
    for name, shape in shapes.items():
        array: Floats = getattr(rotors, name)
        if array.shape != shape or array.dtype != np.float32:
            raise FormatError(
                f"{source}: {name} is {array.dtype} of shape {array.shape}; expected float32 of "
                f"{shape}"
            )
        rest = tuple(range(1, array.ndim))
        refuse(~np.all(np.isfinite(array), axis=rest), array, source, name, "a finite number")
    large = np.any(np.abs(rotors.scales) > MAX_LOG_SCALE, axis=1)
    refuse(large, rotors.scales, source, "scales", f"logarithms within {MAX_LOG_SCALE:g}")
    for name, quaternions in (("left", rotors.left), ("right", rotors.right)):
        zero = np.all(quaternions == 0, axis=1)
        refuse(zero, quaternions, source, name, "a quaternion that is not zero")
