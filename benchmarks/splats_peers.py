"""The same splats in others' hands: half floats under zstd, and the .4dgs format's own writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from penstock.loaders.splats.harmonics import C0
from penstock.loaders.splats.model import SplatModel, SplatMotion, named_arrays

HALF_MOST, LEVEL = 65504.0, 19  # the largest half float; zstd's level
SH_LOW, SH_SPAN = -4.0, 8.0  # of .4dgs's bytes


def half_zstd(model: SplatModel) -> tuple[int, SplatModel]:
    """Bytes of every array as half floats, column by column, under zstd; and what comes back."""
    import zstandard

    halves = {
        name: np.clip(array, -HALF_MOST, HALF_MOST).astype(np.float16)
        for name, array in named_arrays(model).items()
    }
    columns = [half.reshape(model.count, -1).T for half in halves.values()]
    packer = zstandard.ZstdCompressor(level=LEVEL)
    nbytes = sum(len(packer.compress(np.ascontiguousarray(c).tobytes())) for c in columns)
    back = {name: half.astype(np.float32) for name, half in halves.items()}
    motion = model.motion
    if motion is not None:
        motion = SplatMotion(
            back["velocities"],
            back["t_centers"],
            np.maximum(back["t_sigmas"], np.float32(1e-6)),
            motion.start,
            motion.end,
            motion.fps,
        )
    return nbytes, SplatModel(
        back["means"], back["scales"], back["rotations"], back["opacities"], back["sh"], motion
    )


def fourdgs_file(model: SplatModel, out: Path) -> int:
    """Write a moving model with `fourdgs`, with its own default bounds of error; bytes."""
    import fourdgs

    motion = model.motion
    if motion is None:
        raise ValueError("this comparison is of models that move")
    n, duration = model.count, motion.end
    colours = np.clip(0.5 + C0 * model.sh[:, 0], 0, 1)
    rest = model.sh[:, 1:].transpose(0, 2, 1).reshape(n, -1)  # red's, green's, blue's
    lasting = motion.t_sigmas > 10 * duration
    gaussians = fourdgs.GaussianSet(
        positions=model.means,
        scales=model.scales,
        rotations=model.rotations[:, [1, 2, 3, 0]],
        colors=np.column_stack([colours, model.opacities]).astype(np.float32),
        motions=motion.velocities,
        mu_t=motion.t_centers,
        sigma_t=np.where(lasting, np.float32(np.inf), motion.t_sigmas),
        win_lo=np.full(n, motion.start, np.float32),
        win_hi=np.full(n, np.nextafter(np.float32(duration), np.float32(np.inf)), np.float32),
        sh=np.clip(np.rint((rest - SH_LOW) / SH_SPAN * 255), 0, 255).astype(np.uint8)
        if model.degree
        else None,
        sh_degree=model.degree,
    )
    with open(out, "wb") as handle:
        return int(fourdgs.write(handle, gaussians, duration))
