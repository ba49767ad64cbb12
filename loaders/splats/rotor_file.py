"""4D splats of two quaternions: checkpoints of training, and documented npz and PLY layouts.

.pth   what `torch.save((model.capture(), iteration), path)` of fudan-zvg/4d-gaussian-splatting and
       of OMG4 writes: a tuple of 19. Opened with weights_only=True, which makes tensors and runs
       nothing. The scene's times are not in it.
.npz   arrays of the names in `ARRAYS`; docs/splat-formats.md.
.ply   INRIA's columns with t, scale_t and rot_r_0..3 (or scale_3 and rot_4..7, as other tools call
       them) beside them.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, FormatError, UnsupportedModelError, UsageError
from penstock.loaders.splats.activations import from_channel_major, logarithm, logit
from penstock.loaders.splats.array_archive import read_arrays, write_arrays
from penstock.loaders.splats.covariance import join_rotors
from penstock.loaders.splats.file_access import open_file, zip_entries
from penstock.loaders.splats.inria_ply import COLOURS, MEANS, ROTATIONS, SCALES, rest_columns
from penstock.loaders.splats.model import SH_COUNTS, Floats, SplatModel, check_model
from penstock.loaders.splats.ply_file import PlyElement, PlyFile, read_ply_header
from penstock.loaders.splats.rotors import (
    MAX_BANDS,
    Rotors,
    coefficients_known,
    model_of_rotors,
)

ARRAYS = {"xyz": 3, "t": 0, "scale": 4, "rot_l": 4, "rot_r": 4, "opacity": 0}
"""Names of float32 arrays [n, width], 0 for [n], of an npz file; `sh` [n, bands K, 3] beside."""
NPZ_VERSION = 1
CHECKPOINT_ITEMS = 19
# of the tuple, by index
XYZ, FIRST, REST, SCALING, ROTATION, OPACITY = 1, 2, 3, 4, 5, 6
T, SCALING_T, ROTATION_R, IS_4D = 13, 14, 15, 16

Times = tuple[float, float]


def read_rotor_file(path: Path, seconds: float | None = None) -> SplatModel:
    """Moving splats of a checkpoint, an npz or a PLY file, by what the file is.

    Args:
        seconds: that the scene takes, from its own start, or from 0 on where the file does not say
            one. None takes the file's own times; a checkpoint has none, and takes the least and
            greatest t of its splats, which training lets reach a little over the scene's ends.

    Raises:
        BackendMissingError: a checkpoint, and torch is not installed.
        FormatError: damaged, cut short, of another layout, or with values that are not finite.
        StorageError: it cannot be read.
        UnsupportedModelError: a checkpoint of another kind.
    """
    return model_of_rotors(read_rotors(path, seconds), path)


def read_rotors(path: Path, seconds: float | None = None) -> Rotors:
    """The trained parameters of such a file. Raises as `read_rotor_file`."""
    with open_file(path) as (handle, _):
        head = handle.read(4)
    if head[:3] == b"ply":
        return rotors_of_ply(read_ply_header(path), seconds)
    if head[:2] != b"PK":
        raise FormatError(
            f"{path}: starts with {head!r}; expected a checkpoint of torch.save, an npz or a PLY "
            "file. Checkpoints of before torch 1.6 have to be saved again"
        )
    if any(entry.filename.endswith(".npy") for entry in zip_entries(path)):
        return _rotors_of_npz(path, seconds)
    return _rotors_of_checkpoint(path, seconds)


def _rotors_of_checkpoint(path: Path, seconds: float | None) -> Rotors:
    state = _load(path)
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], tuple):
        state = state[0]  # beside the iteration
    if not isinstance(state, tuple) or len(state) != CHECKPOINT_ITEMS:
        found = f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
        raise UnsupportedModelError(
            f"{path}: the checkpoint holds {found}; expected the tuple of {CHECKPOINT_ITEMS} of a "
            "4D model of fudan-zvg/4d-gaussian-splatting or OMG4. Save others as PLY"
        )
    if state[IS_4D] is not True:
        raise UnsupportedModelError(
            f"{path}: the checkpoint was trained without 4D rotations (rot_4d); its splats fade "
            "and do not move. Save it as a PLY with vx, vy, vz, t_center and t_sigma"
        )
    t = _array(path, state[T], "t")[:, 0]
    scaling, scaling_t = (
        _array(path, state[i], name) for i, name in ((SCALING, "scaling"), (SCALING_T, "scaling_t"))
    )
    first = _array(path, state[FIRST], "features_dc", 3)
    rest = _array(path, state[REST], "features_rest", 3)
    if len({len(a) for a in (t, scaling, scaling_t, first, rest)}) != 1:
        raise FormatError(f"{path}: the checkpoint's tensors are of different numbers of splats")
    if first.shape[2] != 3 or rest.shape[2] != 3:
        raise FormatError(f"{path}: the checkpoint's features are not of three colours")
    sh = np.concatenate([first, rest], axis=1)
    start, end = _scene_times(None, seconds, t)
    return Rotors(
        xyz=_array(path, state[XYZ], "xyz"),
        t=t,
        scales=np.concatenate([scaling, scaling_t], axis=1),
        left=_array(path, state[ROTATION], "rotation"),
        right=_array(path, state[ROTATION_R], "rotation_r"),
        logits=_array(path, state[OPACITY], "opacity")[:, 0],
        sh=sh,
        bands=coefficients_known(sh.shape[1]) or 1,
        start=start,
        end=end,
    )


def _load(path: Path) -> Any:
    entries, size = zip_entries(path), os.path.getsize(path)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        raise FormatError(
            f"{path}: an archive of {size} bytes that would become more; torch does not compress, "
            "so this is no checkpoint"
        )
    try:
        import torch
    except ImportError:
        raise BackendMissingError(
            f"{path}: checkpoints are read by torch, which is not installed; install it with: "
            "pip install 'penstock[export]', or save the model as npz or PLY"
        ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first_line = next(iter(str(error).splitlines()), "")[:200]
        raise FormatError(
            f"{path}: {first_line} Penstock reads a checkpoint's tensors and never runs its code"
        ) from None
    except Exception as error:  # of what is damaged: RuntimeError, EOFError, KeyError...
        raise FormatError(
            f"{path}: a damaged checkpoint ({type(error).__name__}); fetch it again"
        ) from None


def _array(path: Path, tensor: Any, name: str, dimensions: int = 2) -> Floats:
    """A tensor as float32, contiguous; no more of it than its file has."""
    import torch

    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"  # a meta tensor has no numbers
        or tensor.is_quantized
        or not tensor.is_floating_point()
        or tensor.dim() != dimensions
        or (dimensions == 2 and tensor.shape[1] == 0)
    ):
        raise FormatError(
            f"{path}: '{name}' of the checkpoint is not a tensor of {dimensions} dimensions of "
            "floating-point numbers"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise FormatError(f"{path}: '{name}' of the checkpoint repeats its numbers; it is damaged")
    array: Floats = np.ascontiguousarray(tensor.detach().float().numpy())
    return array


def _rotors_of_npz(path: Path, seconds: float | None) -> Rotors:
    arrays = read_arrays(path)
    needed = [*ARRAYS, "sh", "bands", "version"]
    if seconds is None:
        needed.append("time")
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise FormatError(
            f"{path}: has no array {', '.join(missing)}; expected the layout of "
            "docs/splat-formats.md"
        )
    version, bands = (_number(path, arrays, name) for name in ("version", "bands"))
    if version != NPZ_VERSION:
        raise FormatError(
            f"{path}: layout version {version:g}, expected {NPZ_VERSION}; use a newer Penstock"
        )
    own = None
    if "time" in arrays:
        if arrays["time"].shape != (2,):
            raise FormatError(f"{path}: array 'time' of shape {arrays['time'].shape}, expected 2")
        own = (float(arrays["time"][0]), float(arrays["time"][1]))
    with np.errstate(over="ignore", invalid="ignore"):  # doubles: found where not finite
        values = {n: np.ascontiguousarray(arrays[n], np.float32) for n in [*ARRAYS, "sh"]}
    start, end = _scene_times(own, seconds, values["t"])
    return Rotors(
        xyz=values["xyz"],
        t=values["t"],
        scales=values["scale"],
        left=values["rot_l"],
        right=values["rot_r"],
        logits=values["opacity"],
        sh=values["sh"],
        bands=int(bands),
        start=start,
        end=end,
        fps=_number(path, arrays, "fps") if "fps" in arrays else None,
    )


def _number(path: Path, arrays: dict[str, Any], name: str) -> float:
    array = arrays[name]
    if array.size != 1 or not np.isfinite(array).all():
        raise FormatError(f"{path}: array '{name}' should be one number")
    return float(array.reshape(-1)[0])


def is_rotor_ply(vertex: PlyElement) -> bool:
    """Whether these are the columns of such splats."""
    return vertex.has("t") and (vertex.has("scale_t") or vertex.has("scale_3"))


def rotors_of_ply(ply: PlyFile, seconds: float | None = None) -> Rotors:
    """As `read_rotors`, of a header that was read."""
    vertex = ply.element("vertex")
    scale_t = "scale_t" if vertex.has("scale_t") else "scale_3"
    right = [f"rot_r_{i}" for i in range(4)]
    if not vertex.has(right[0]):
        right = [f"rot_{i}" for i in range(4, 8)]
    counts = [bands * k for bands in range(1, MAX_BANDS + 1) for k in SH_COUNTS]
    groups = [MEANS, ["t"], [*SCALES, scale_t], ROTATIONS, right, ["opacity"], COLOURS]
    groups.append(rest_columns(ply, vertex, counts))
    xyz, t, scales, left, right_q, logits, first, rest = ply.read_groups(vertex, groups)
    sh = from_channel_major(rest, first)
    low, high = ply.numbers("sogst.time_min"), ply.numbers("sogst.time_max")
    start, end = _scene_times((low[0], high[0]) if low and high else None, seconds, t)
    fps = ply.numbers("sogst.fps")
    return Rotors(
        xyz=xyz,
        t=t[:, 0],
        scales=scales,
        left=left,
        right=right_q,
        logits=logits[:, 0],
        sh=sh,
        bands=coefficients_known(sh.shape[1]) or 1,
        start=start,
        end=end,
        fps=fps[0] if fps else None,
    )


def _scene_times(own: Times | None, seconds: float | None, t: Floats) -> Times:
    """As long as is asked, from the file's start or 0; else the file's own, or from the first
    splat's centre to the last's; of no splats one second."""
    if seconds is not None:
        start = own[0] if own else 0.0
        return start, start + seconds
    if own is not None:
        return own
    return (float(t.min()), float(t.max())) if t.size else (0.0, 1.0)


def write_rotor_npz(path: Path, model: SplatModel, bands: int = MAX_BANDS) -> None:
    """Write moving splats with the parameters of a rotor model: 644 bytes a splat with 3 bands.

    Colours are written in the first band, to degree 3; the others are zeros.

    Raises:
        FormatError: the model is not one that can be drawn.
        StorageError: the file cannot be written.
        UsageError: the model does not move.
    """
    motion = model.motion
    if motion is None:
        raise UsageError(f"{path}: static splats have no 4D rotation; write them as PLY")
    check_model(model, path)
    scales, left, right = join_rotors(
        model.scales, model.rotations, motion.velocities, motion.t_sigmas
    )
    coefficients = max(SH_COUNTS)
    sh = np.zeros((model.count, bands * coefficients, 3), "<f4")
    sh[:, : model.sh.shape[1]] = model.sh
    arrays: dict[str, NDArray[Any]] = {
        "version": np.array(NPZ_VERSION, "<i4"),
        "bands": np.array(bands, "<i4"),
        "time": np.array([motion.start, motion.end], "<f8"),
        "xyz": model.means.astype("<f4"),
        "t": motion.t_centers.astype("<f4"),
        "scale": logarithm(scales).astype("<f4"),
        "rot_l": left.astype("<f4"),
        "rot_r": right.astype("<f4"),
        "opacity": logit(model.opacities).astype("<f4"),
        "sh": sh,
    }
    if motion.fps is not None:
        arrays["fps"] = np.array(motion.fps, "<f8")
    write_arrays(path, arrays)
