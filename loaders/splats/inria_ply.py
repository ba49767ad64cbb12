"""INRIA's PLY of trained splats, and the same with linear motion: read and written.

Columns (https://github.com/graphdeco-inria/gaussian-splatting): x y z, nx ny nz (unused), f_dc_0..2
and f_rest_* (SH, channel by channel), opacity (logit), scale_0..2 (ln), rot_0..3 (w first). Its
frame is the model's. Moving splats have vx vy vz, t_center and t_sigma too, seconds, as specified
for interchange in https://github.com/solipsist-studios/cumuli, docs/sogst-format.md section 7
(CC-BY-4.0), with the scene's times in comments.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from penstock.errors import FormatError
from penstock.loaders.partial_file import partial_file
from penstock.loaders.splats.activations import (
    exponential,
    from_channel_major,
    logarithm,
    logit,
    sigmoid,
    to_channel_major,
)
from penstock.loaders.splats.model import (
    SH_COUNTS,
    SplatModel,
    SplatMotion,
    check_model,
    unit_rotations,
)
from penstock.loaders.splats.ply_file import PlyElement, PlyFile, read_ply_header
from penstock.loaders.splats.straight_motion import fit_lines

MEANS = ["x", "y", "z"]
SCALES = ["scale_0", "scale_1", "scale_2"]
ROTATIONS = ["rot_0", "rot_1", "rot_2", "rot_3"]
COLOURS = ["f_dc_0", "f_dc_1", "f_dc_2"]
VELOCITIES = ["vx", "vy", "vz"]
ACCELERATIONS = ["ax", "ay", "az"]  # the factor of dt^2, not half of it
WRITE_BLOCK = 1 << 15  # rows


def read_inria_ply(path: Path) -> SplatModel:
    """Splats, static or moving, of a PLY file.

    A curved motion (ax, ay, az) becomes the straight one nearest to it while the splat is seen.

    Raises:
        FormatError: damaged, cut short, of other columns, or with values that are not finite.
        StorageError: it cannot be read.
    """
    ply = read_ply_header(path)
    return model_of_ply(ply)


def model_of_ply(ply: PlyFile) -> SplatModel:
    """As `read_inria_ply`, of a header that was read."""
    vertex = ply.element("vertex")
    groups = [MEANS, SCALES, ROTATIONS, ["opacity"], COLOURS, rest_columns(ply, vertex)]
    means, scales, rotations, logits, first, rest = ply.read_groups(vertex, groups)
    model = SplatModel(
        means=means,
        scales=exponential(scales),
        rotations=unit_rotations(rotations),
        opacities=sigmoid(logits[:, 0]),
        sh=from_channel_major(rest, first),
    )
    if vertex.has("t_center"):
        model = _moving(ply, vertex, model)
    return check_model(model, ply.path)


def rest_columns(ply: PlyFile, vertex: PlyElement, counts: Iterable[int] = SH_COUNTS) -> list[str]:
    """The names f_rest_0... that the element has.

    Args:
        counts: numbers of coefficients of a channel that are known, with the first one.

    Raises:
        FormatError: so many coefficients are of no known number.
    """
    rest = vertex.numbered("f_rest_")
    if rest % 3 or rest // 3 + 1 not in counts:
        known = ", ".join(str(3 * (k - 1)) for k in counts)
        raise FormatError(
            f"{ply.path}: the PLY header has {rest} columns f_rest_*; expected one of {known}"
        )
    return [f"f_rest_{i}" for i in range(rest)]


def _moving(ply: PlyFile, vertex: PlyElement, model: SplatModel) -> SplatModel:
    start, end, fps = read_times(ply)
    groups = [VELOCITIES, ["t_center"], ["t_sigma"]]
    velocities, t_centers, t_sigmas = ply.read_groups(vertex, groups)
    t_centers, t_sigmas, means = t_centers[:, 0], t_sigmas[:, 0], model.means
    if vertex.has(*ACCELERATIONS):
        curve = ply.read(vertex, ACCELERATIONS)
        line = fit_lines(t_centers, t_sigmas, curve, np.zeros_like(curve), start, end)
        with np.errstate(over="ignore", invalid="ignore"):  # the model's check finds it
            means, velocities = means + line.offsets, velocities + line.velocities
    motion = SplatMotion(velocities, t_centers, t_sigmas, start, end, fps)
    return SplatModel(means, model.scales, model.rotations, model.opacities, model.sh, motion)


def curve_error(ply: PlyFile) -> float | None:
    """How far curved motions are at most from the lines that they are read as, while splats are
    seen, in world units; None where all are straight. Raises as `read_inria_ply`."""
    vertex = ply.element("vertex")
    if not vertex.has("t_center", *ACCELERATIONS):
        return None
    start, end, _ = read_times(ply)
    curve, centers, sigmas = ply.read_groups(vertex, [ACCELERATIONS, ["t_center"], ["t_sigma"]])
    if not curve.any():
        return None
    lines = fit_lines(centers[:, 0], sigmas[:, 0], curve, np.zeros_like(curve), start, end)
    return float(lines.errors.max(initial=0))


def check_columns(ply: PlyFile) -> None:
    """Refuse a PLY file of something else.

    Raises:
        FormatError: a column is missing that splats have.
    """
    ply.check_columns(ply.element("vertex"), [*MEANS, *SCALES, *ROTATIONS, "opacity", *COLOURS])


def read_times(ply: PlyFile) -> tuple[float, float, float | None]:
    """(start, end, frames a second or None) of the header's comments.

    Raises:
        FormatError: start or end is missing: no default is right.
    """
    start, end = ply.numbers("sogst.time_min"), ply.numbers("sogst.time_max")
    if start is None or end is None:
        raise FormatError(
            f"{ply.path}: the PLY header has no 'comment sogst.time_min' and 'sogst.time_max' with "
            "the scene's first and last second; add them, or export the file again"
        )
    fps = ply.numbers("sogst.fps")
    return start[0], end[0], fps[0] if fps else None


def write_inria_ply(path: Path, model: SplatModel) -> None:
    """Write splats, static or moving, as the file that `read_inria_ply` reads.

    Opacities of 0 and 1 have no logit and scales of 0 no logarithm: they become the nearest that
    have.

    Raises:
        FormatError: the model is not one that can be drawn.
        StorageError: the file cannot be written.
    """
    check_model(model, path)
    columns = [*MEANS, "nx", "ny", "nz", *COLOURS]
    columns += [f"f_rest_{i}" for i in range(3 * (model.sh.shape[1] - 1))]
    columns += ["opacity", *SCALES, *ROTATIONS]
    comments = ["Generated by Penstock"]
    if model.motion is not None:
        columns += [*VELOCITIES, "t_center", "t_sigma"]
        comments += ["sogst.version 1", f"sogst.time_min {float(model.motion.start)!r}"]
        comments += [f"sogst.time_max {float(model.motion.end)!r}", "sogst.motion_degree 1"]
        if model.motion.fps is not None:
            comments.append(f"sogst.fps {float(model.motion.fps)!r}")
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment {text}" for text in comments]
    header += [f"element vertex {model.count}"]
    header += [f"property float {name}" for name in columns]
    with partial_file(path) as (handle, _):
        handle.write("\n".join([*header, "end_header", ""]).encode("ascii"))
        for begin in range(0, model.count, WRITE_BLOCK):
            handle.write(_rows(model, slice(begin, begin + WRITE_BLOCK)).tobytes())


def _rows(model: SplatModel, part: slice) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Rows as they are stored, [rows, columns] little-endian."""
    parts = [
        model.means[part],
        np.zeros_like(model.means[part]),
        model.sh[part, 0],
        to_channel_major(model.sh[part]),
        logit(model.opacities[part])[:, None],
        logarithm(model.scales[part]),
        model.rotations[part],
    ]
    if model.motion is not None:
        parts += [
            model.motion.velocities[part],
            model.motion.t_centers[part, None],
            model.motion.t_sigmas[part, None],
        ]
    return np.concatenate(parts, axis=1).astype("<f4")
