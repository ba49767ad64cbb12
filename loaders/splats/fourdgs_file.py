"""Scenes of the .4dgs format, read through its own library, `fourdgs`.

https://github.com/avala-ai/4dgs (Apache-2.0). Its temporal model `gaussian-birth` is that of a
model here: position, linear motion, time of birth, temporal sigma. What it has beyond: windows of
time that cut a splat off, splats that never fade, tracks of objects, and a frame of its own.
Colours are plain, 0 to 1; bytes of spherical harmonics span -4 to 4, channel by channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, FormatError, UnsupportedModelError
from penstock.loaders.splats.activations import colour_to_sh, from_channel_major
from penstock.loaders.splats.axes import axes_of, change_axes
from penstock.loaders.splats.file_access import open_file
from penstock.loaders.splats.fourdgs_limits import check_fourdgs
from penstock.loaders.splats.model import (
    SEEN_SIGMAS,
    SH_COUNTS,
    Floats,
    SplatModel,
    SplatMotion,
    check_model,
    select,
    unit_rotations,
)

MAGIC = b"\x894DGS1\r\n"
SH_LOW, SH_SPAN = -4.0, 8.0
LASTING_SIGMAS = 1e4
"""A splat that never fades gets a t_sigma of so many scenes' lengths: in float32 it weighs 1."""
SYSTEMS = {
    "y-up-right-handed": axes_of(
        np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, -1.0])
    ),
    "z-up-right-handed": axes_of(
        np.array([1.0, 0, 0]), np.array([0, 0, 1.0]), np.array([0, 1.0, 0])
    ),
}
"""Frames that a file may name in its header's attributes."""


@dataclass(frozen=True)
class FourdgsModel:
    """The model and what of the file it does not have.

    Attributes:
        cut: splats that the file cuts off at a window's end while they are still seen.
        boxed: splats that are there from a window's begin to its end and do not fade; their weight
            is a Gaussian now, at the cutoff at the window's ends.
    """

    model: SplatModel
    cut: int
    boxed: int


def read_fourdgs(path: Path) -> SplatModel:
    """Moving splats of a .4dgs file.

    Raises:
        BackendMissingError: fourdgs is not installed.
        FormatError: damaged, cut short, of another temporal model, or out of all proportion.
        StorageError: it cannot be read.
        UnsupportedModelError: objects that move on tracks, or chunks compressed as a whole.
    """
    return read_fourdgs_with_losses(path).model


def read_fourdgs_with_losses(path: Path) -> FourdgsModel:
    """As `read_fourdgs`, with the numbers of splats that look different."""
    scene = _read(path)
    if getattr(getattr(scene, "objects", None), "tracks", None):
        raise UnsupportedModelError(
            f"{path}: objects that move on tracks; bake them into the splats' own motion"
        )
    g = scene.gaussians
    n, duration = len(g.positions), float(scene.duration_sec)
    if not np.isfinite(duration) or duration < 0:
        raise FormatError(f"{path}: the scene takes {duration} seconds")
    rest = np.zeros((n, 0), np.float32)
    if g.sh is not None:
        if g.sh.ndim != 2 or g.sh.shape[1] % 3 or g.sh.shape[1] // 3 + 1 not in SH_COUNTS:
            raise FormatError(f"{path}: spherical harmonics of shape {g.sh.shape}")
        rest = (np.asarray(g.sh, np.float32) * np.float32(SH_SPAN / 255)) + np.float32(SH_LOW)
    centers, sigmas, cut, boxed = _times(g, duration)
    motions = np.asarray(g.motions, np.float64)
    with np.errstate(all="ignore"):  # the model's check finds what is not finite
        moved = motions * (centers - np.asarray(g.mu_t, np.float64))[:, None]
    colours = np.asarray(g.colors, np.float32)
    model = SplatModel(
        means=_floats(np.asarray(g.positions, np.float64) + moved),
        scales=_floats(g.scales),
        rotations=unit_rotations(np.asarray(g.rotations)[:, [3, 0, 1, 2]]),  # from x, y, z, w
        opacities=np.ascontiguousarray(colours[:, 3]),
        sh=from_channel_major(rest, colour_to_sh(colours[:, :3])),
        motion=SplatMotion(_floats(motions), centers, sigmas, 0.0, duration),
    )
    check_model(model, path)
    never = np.asarray(g.win_hi) <= np.asarray(g.win_lo)
    if never.any():  # in no window: never seen
        model = select(model, ~never)
    return FourdgsModel(change_axes(model, _axes(path, scene)), cut, boxed)


def _times(g: Any, duration: float) -> tuple[Floats, Floats, int, int]:
    """(t_centers, t_sigmas, cut, boxed) of windows, births and sigmas."""
    center, sigma = np.asarray(g.mu_t, np.float64), np.asarray(g.sigma_t, np.float64)
    first = np.maximum(np.asarray(g.win_lo, np.float64), 0)
    last = np.minimum(np.asarray(g.win_hi, np.float64), duration)
    lasting = np.isposinf(sigma)
    boxed = lasting & (last > first) & ((first > 0) | (last < duration))
    finite = np.where(lasting, 1.0, sigma)
    reach = SEEN_SIGMAS * finite
    seen_first, seen_last = np.maximum(center - reach, 0), np.minimum(center + reach, duration)
    cut = ~lasting & ((seen_first < first) | (seen_last > last)) & (seen_last > seen_first)
    sigma = np.where(lasting, LASTING_SIGMAS * max(duration, 1.0), sigma)
    center = np.where(boxed, (first + last) / 2, center)
    sigma = np.where(boxed, (last - first) / 2 / SEEN_SIGMAS, sigma)
    return _floats(center), _floats(sigma), int(cut.sum()), int(boxed.sum())


def _axes(path: Path, scene: Any) -> NDArray[np.float64]:
    """From the file's frame to the model's; a file that names none is taken as it is."""
    frames = getattr(getattr(scene, "provenance", None), "frames", None) or []
    frame = next((f for f in frames if not f.name), None)  # others are of sensors and rigs
    if frame is not None:
        up, forward = _axis(path, frame.up_axis), _axis(path, frame.forward_axis)
        if abs(float(up @ forward)) > 0:
            raise FormatError(f"{path}: its frame's up and forward are one axis")
        right = np.cross(forward, up) * (-1.0 if int(frame.handedness) == 2 else 1.0)
        return axes_of(right, up, forward)
    name = dict(getattr(scene.header, "attributes", None) or {}).get("coordinate_system")
    if name is None:
        return np.eye(3)
    if name not in SYSTEMS:
        raise FormatError(
            f"{path}: coordinate_system is '{str(name)[:40]}'; expected {' or '.join(SYSTEMS)}"
        )
    return SYSTEMS[name]


def _axis(path: Path, code: int) -> NDArray[np.float64]:
    """0 to 5: +x, +y, +z, -x, -y, -z."""
    if not 0 <= int(code) <= 5:
        raise FormatError(f"{path}: axis number {code} of its frame; expected 0 to 5")
    return np.asarray(np.eye(3)[int(code) % 3] * (1.0 if int(code) < 3 else -1.0), np.float64)


def _floats(values: Any) -> Floats:
    with np.errstate(over="ignore"):  # the model's check finds it
        return np.ascontiguousarray(values, np.float32)


def _read(path: Path) -> Any:
    try:
        import fourdgs
    except ImportError:
        raise BackendMissingError(
            f"{path}: .4dgs files are read by fourdgs, which is not installed; install it with: "
            "pip install 'penstock[fourdgs]'"
        ) from None
    with open_file(path) as (handle, size):
        data = handle.read(size)
    check_fourdgs(path, data)
    try:
        return fourdgs.read(data, recover_truncated=False)
    except Exception as error:  # its own, and what damaged numbers make NumPy raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise FormatError(f"{path}: {lines[0][:300]}") from None
