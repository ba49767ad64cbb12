"""Spacetime Gaussians' PLY: curved motion and a window of time a splat, as a model's straight ones.

Columns of https://github.com/oppo-us-research/SpacetimeGaussians (its light model): INRIA's with
f_dc_* as plain colours 0 to 1, trbf_center and trbf_scale (ln), motion_0..8 (x, y, z of the factors
of dt, dt^2, dt^3) and omega_0..3 (the quaternion's change with dt). Time is a share of the clip,
0 to 1. Its weight is exp(-(dt / s)^2), without a half; so t_sigma is s / sqrt 2. The full model's
colours come from a neural network in another file, which is not read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penstock.errors import UnsupportedModelError, UsageError
from penstock.loaders.splats.activations import colour_to_sh, exponential, sigmoid
from penstock.loaders.splats.inria_ply import COLOURS, MEANS, ROTATIONS, SCALES
from penstock.loaders.splats.model import (
    SEEN_SIGMAS,
    Floats,
    SplatModel,
    SplatMotion,
    check_model,
    unit_rotations,
)
from penstock.loaders.splats.ply_file import PlyElement, PlyFile, read_ply_header
from penstock.loaders.splats.straight_motion import fit_lines

WINDOW = ["trbf_center", "trbf_scale"]
MOTION = [f"motion_{i}" for i in range(9)]
OMEGA = [f"omega_{i}" for i in range(4)]


@dataclass(frozen=True)
class SpacetimeModel:
    """The model and by how much its motion differs from the file's.

    Attributes:
        distance: the largest between curve and line, world units, while a splat is seen.
        degrees: the largest turn that is left out, from t_center to the end of what is seen.
    """

    model: SplatModel
    distance: float
    degrees: float


def is_spacetime_ply(vertex: PlyElement) -> bool:
    """Whether these are the columns of such splats."""
    return vertex.has(*WINDOW)


def read_spacetime_ply(path: Path, seconds: float = 1.0) -> SplatModel:
    """Moving splats, of SH degree 0.

    Args:
        seconds: that the clip takes; the file does not say.

    Raises:
        FormatError: damaged, cut short, of other columns, or with values that are not finite.
        StorageError: it cannot be read.
        UnsupportedModelError: a full model, whose colours need its network.
        UsageError: seconds is not over 0.
    """
    return spacetime_of_ply(read_ply_header(path), seconds).model


def spacetime_of_ply(ply: PlyFile, seconds: float = 1.0) -> SpacetimeModel:
    """As `read_spacetime_ply`, of a header that was read."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"{seconds} seconds; expected a number over 0")
    vertex = ply.element("vertex")
    if vertex.has("f_dc_3") or vertex.has("f_t_0"):
        raise UnsupportedModelError(
            f"{ply.path}: a full Spacetime Gaussian model, whose colours come from the network in "
            "the .pt file beside it; train or export the light model (ours_lite)"
        )
    groups = [MEANS, SCALES, ROTATIONS, ["opacity"], COLOURS, WINDOW, MOTION]
    means, scales, rotations, logits, colours, window, motion = ply.read_groups(vertex, groups)
    with np.errstate(over="ignore", invalid="ignore"):  # the model's check finds it
        centers = window[:, 0] * np.float32(seconds)
        sigmas = exponential(window[:, 1]) * np.float32(seconds / math.sqrt(2))
        motion = motion / np.repeat([seconds, seconds**2, seconds**3], 3)
        line = fit_lines(centers, sigmas, motion[:, 3:6], motion[:, 6:9], 0.0, seconds)
        model = SplatModel(
            means=means + line.offsets,
            scales=exponential(scales),
            rotations=unit_rotations(rotations),
            opacities=sigmoid(logits[:, 0]),
            sh=colour_to_sh(colours)[:, None, :],
            motion=SplatMotion(
                (motion[:, :3] + line.velocities).astype(np.float32),
                centers,
                sigmas,
                0.0,
                seconds,
            ),
        )
    check_model(model, ply.path)
    distance = float(line.errors.max(initial=0))
    return SpacetimeModel(model, distance, _turned(ply, vertex, rotations, window))


def _turned(ply: PlyFile, vertex: PlyElement, rotations: Floats, window: Floats) -> float:
    """The largest angle between a splat's rotation at t_center and at the ends of what is seen,
    degrees."""
    if not vertex.has(*OMEGA) or not vertex.count:
        return 0.0
    omega = ply.read(vertex, OMEGA).astype(np.float64)
    reach = SEEN_SIGMAS * np.exp(window[:, 1].astype(np.float64)) / math.sqrt(2)
    reach = np.minimum(reach, 1.0)[:, None]  # of the clip
    unit = unit_rotations(rotations)
    turned = (unit_rotations(rotations + sign * reach * omega) for sign in (-1, 1))
    cosines = [np.abs(np.einsum("ni,ni->n", q, unit)).min() for q in turned]
    return math.degrees(2 * math.acos(min(1.0, *map(float, cosines))))
