"""Gaussian splats in memory: what every reader gives and every renderer and encoder takes.

Frames and units, the same for every format once it is read:
    world and camera: x right, y down, z forward (COLMAP's and INRIA's).
    rotations: unit quaternions (w, x, y, z). A splat's covariance is R diag(scales^2) R^T.
    scales: standard deviations, linear, in world units. Opacity: linear, 0 to 1.
    colour towards a direction: max(0, 0.5 + sum_k Y_k(direction) sh_k), INRIA's basis and signs;
        the direction goes from the camera's centre to the splat's mean (not moved).
    time: seconds. At time t a splat's mean is means + velocities (t - t_centers) and its opacity
        is opacities exp(-0.5 ((t - t_centers) / t_sigmas)^2); it is drawn where that factor is
        over `WEIGHT_CUTOFF`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError

Floats = NDArray[np.float32]

LOW_PASS = 0.3  # pixels squared, added to footprints; INRIA's
WEIGHT_CUTOFF = 0.05
"""A splat with this weight in time or less is not drawn; 4D Gaussian Splatting's rule."""
SEEN_SIGMAS = math.sqrt(-2 * math.log(WEIGHT_CUTOFF))
"""A splat is drawn for so many t_sigmas before and after its t_center: 2.448."""
FOOTPRINTS = ("exact", "omg4-sentinel")
"""How wide splats are drawn: as they are, or as in the training of OMG4's published checkpoints,
whose images' field of view was -1 (docs/splats.md)."""
SH_COUNTS = {1: 0, 4: 1, 9: 2, 16: 3}
"""Coefficients of a colour channel -> degree of the spherical harmonics."""
MAX_SPLATS = 1 << 28
"""More than this is taken for a damaged header; the largest scenes known have a tenth of it."""
MAX_SECONDS = 1e9
"""Times of a scene that are further from 0, 31 years, are taken for damage."""


@dataclass(frozen=True)
class SplatMotion:
    """How splats move and when they are seen.

    Attributes:
        velocities: [n, 3], world units a second.
        t_centers: [n], seconds.
        t_sigmas: [n], seconds, over 0.
        start, end: of the scene, seconds.
        fps: frames a second that the scene was made from, where known.
    """

    velocities: Floats
    t_centers: Floats
    t_sigmas: Floats
    start: float
    end: float
    fps: float | None = None


@dataclass(frozen=True)
class SplatModel:
    """n Gaussians, in the frame and the units that the module describes. n may be 0.

    Attributes:
        means: [n, 3]; of a moving splat, where it is at its own t_center.
        scales: [n, 3].
        rotations: [n, 4].
        opacities: [n].
        sh: [n, k, 3], k of `SH_COUNTS`, coefficients of red, green and blue.
        motion: None of a static scene.
    """

    means: Floats
    scales: Floats
    rotations: Floats
    opacities: Floats
    sh: Floats
    motion: SplatMotion | None = None

    @property
    def count(self) -> int:
        return int(self.means.shape[0])

    @property
    def degree(self) -> int:
        """Of the spherical harmonics, 0 to 3."""
        return SH_COUNTS[int(self.sh.shape[1])]

    @property
    def dynamic(self) -> bool:
        return self.motion is not None

    @property
    def nbytes(self) -> int:
        """Of all the arrays."""
        return sum(array.nbytes for array in named_arrays(self).values())


def named_arrays(model: SplatModel) -> dict[str, Floats]:
    """Every array of the model by the name of its field, in the order of the classes."""
    arrays = {
        "means": model.means,
        "scales": model.scales,
        "rotations": model.rotations,
        "opacities": model.opacities,
        "sh": model.sh,
    }
    if model.motion is not None:
        arrays["velocities"] = model.motion.velocities
        arrays["t_centers"] = model.motion.t_centers
        arrays["t_sigmas"] = model.motion.t_sigmas
    return arrays


def check_model(model: SplatModel, source: object) -> SplatModel:
    """Refuse what no renderer could draw; gives the model back.

    Args:
        source: where it came from, a path mostly; errors begin with it.

    Raises:
        FormatError: a wrong shape or type, NaN or infinity, a negative scale, an opacity outside 0
            to 1, a quaternion that is not of unit length, a t_sigma that is not over 0.
    """
    _check_shapes(model, source)
    for name, array in named_arrays(model).items():
        refuse(~_finite_rows(array), array, source, name, "a finite number")
    refuse(np.any(model.scales < 0, axis=1), model.scales, source, "scales", "0 or more")
    outside = (model.opacities < 0) | (model.opacities > 1)
    refuse(outside, model.opacities, source, "opacities", "0 to 1")
    with np.errstate(over="ignore"):
        squares = np.einsum("ni,ni->n", model.rotations, model.rotations)
    refuse(
        np.abs(squares - 1) > 1e-2, model.rotations, source, "rotations", "a quaternion of length 1"
    )
    if model.motion is not None:
        sigmas = model.motion.t_sigmas
        refuse(sigmas <= 0, sigmas, source, "t_sigmas", "over 0 seconds")
        _check_span(model.motion, source)
    return model


def select(
    model: SplatModel, indices: NDArray[np.integer] | NDArray[np.bool_] | slice
) -> SplatModel:
    """The splats at these indices, or where a mask is true, in this order."""
    motion = model.motion
    if motion is not None:
        motion = SplatMotion(
            np.ascontiguousarray(motion.velocities[indices]),
            np.ascontiguousarray(motion.t_centers[indices]),
            np.ascontiguousarray(motion.t_sigmas[indices]),
            motion.start,
            motion.end,
            motion.fps,
        )
    return SplatModel(
        np.ascontiguousarray(model.means[indices]),
        np.ascontiguousarray(model.scales[indices]),
        np.ascontiguousarray(model.rotations[indices]),
        np.ascontiguousarray(model.opacities[indices]),
        np.ascontiguousarray(model.sh[indices]),
        motion,
    )


def unfilled_model(
    n: int,
    degree: int,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
) -> SplatModel:
    """A model whose arrays are to be filled; a static one where start or end is None."""
    shapes = ((n, 3), (n, 3), (n, 4), (n,), (n, (degree + 1) ** 2, 3))
    means, scales, rotations, opacities, sh = (np.empty(shape, np.float32) for shape in shapes)
    motion = None
    if start is not None and end is not None:
        velocities, centers, sigmas = (np.empty(shape, np.float32) for shape in ((n, 3), n, n))
        motion = SplatMotion(velocities, centers, sigmas, start, end, fps)
    return SplatModel(means, scales, rotations, opacities, sh, motion)


def concatenate(models: Sequence[SplatModel]) -> SplatModel:
    """One model of all the splats, in order; the largest SH degree and the union of the times.

    Raises:
        ValueError: none, or static and moving models together.
    """
    if not models:
        raise ValueError("there is no model to concatenate")
    motions = [m.motion for m in models if m.motion is not None]
    if motions and len(motions) != len(models):
        raise ValueError("static and moving models cannot be concatenated")
    width = max(int(m.sh.shape[1]) for m in models)
    rates = {m.fps for m in motions}
    motion = None
    if motions:
        motion = SplatMotion(
            np.concatenate([m.velocities for m in motions]),
            np.concatenate([m.t_centers for m in motions]),
            np.concatenate([m.t_sigmas for m in motions]),
            min(m.start for m in motions),
            max(m.end for m in motions),
            rates.pop() if len(rates) == 1 else None,
        )
    return SplatModel(
        np.concatenate([m.means for m in models]),
        np.concatenate([m.scales for m in models]),
        np.concatenate([m.rotations for m in models]),
        np.concatenate([m.opacities for m in models]),
        np.concatenate([_widened(m.sh, width) for m in models]),
        motion,
    )


def unit_rotations(quaternions: NDArray[np.floating]) -> Floats:
    """Quaternions [n, 4] divided by their lengths. Zero ones stay, for `check_model` to refuse."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinite ones become NaN, to be refused
        q = np.asarray(quaternions, np.float64)
        length = np.sqrt(np.einsum("ni,ni->n", q, q))
        return np.asarray(q / np.where(length > 0, length, 1)[:, None], np.float32)


def _widened(sh: Floats, width: int) -> Floats:
    """With zeros for the coefficients [n, k, 3] that it does not have."""
    return np.pad(sh, ((0, 0), (0, width - sh.shape[1]), (0, 0)))


def _check_shapes(model: SplatModel, source: object) -> None:
    n = model.means.shape[0] if model.means.ndim else 0
    k = model.sh.shape[1] if model.sh.ndim == 3 else 0
    if k not in SH_COUNTS:
        raise FormatError(
            f"{source}: sh has shape {model.sh.shape}; expected [n, k, 3] with k of "
            f"{', '.join(map(str, SH_COUNTS))}"
        )
    expected = {
        "means": (n, 3),
        "scales": (n, 3),
        "rotations": (n, 4),
        "opacities": (n,),
        "sh": (n, k, 3),
        "velocities": (n, 3),
        "t_centers": (n,),
        "t_sigmas": (n,),
    }
    for name, array in named_arrays(model).items():
        if array.shape != expected[name]:
            raise FormatError(
                f"{source}: {name} has shape {array.shape}; expected {expected[name]}"
            )
        if array.dtype != np.float32:
            raise FormatError(f"{source}: {name} is {array.dtype}; expected float32")


def _check_span(motion: SplatMotion, source: object) -> None:
    for name, time in (("start", motion.start), ("end", motion.end)):
        if not abs(time) <= MAX_SECONDS:  # nor where it is NaN
            raise FormatError(
                f"{source}: {name} is {time} seconds; expected at most {MAX_SECONDS:g} from 0"
            )
    if motion.end < motion.start:
        raise FormatError(
            f"{source}: the scene ends at {motion.end} s, before its start at {motion.start} s"
        )
    if motion.fps is not None and not (math.isfinite(motion.fps) and motion.fps > 0):
        raise FormatError(f"{source}: fps is {motion.fps}; expected a number over 0")


def _finite_rows(array: Floats) -> NDArray[np.bool_]:
    """Of each splat [n], whether all its numbers are finite."""
    result: NDArray[np.bool_] = np.all(np.isfinite(array), axis=tuple(range(1, array.ndim)))
    return result


def refuse(
    bad: NDArray[np.bool_],
    array: NDArray[np.generic],
    source: object,
    name: str,
    expected: str,
) -> None:
    """An error that names the first of the bad splats, where there is one.

    Args:
        bad: [n], of each splat.
        array: [n, ...], the field's values.

    Raises:
        FormatError: one is bad.
    """
    if bad.any():
        first = int(np.argmax(bad))
        value = np.array2string(array[first].ravel(), precision=6, threshold=8)
        raise FormatError(
            f"{source}: {name} of splat {first} is {value}; expected {expected} "
            f"({int(bad.sum())} of {bad.size} splats are so); the file is damaged, or its training "
            "failed; export it again"
        )
