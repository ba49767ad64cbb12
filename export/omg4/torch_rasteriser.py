"""The rasteriser in torch, for a GPU: the native one's rules, all pixels of many tiles at a time.

Slow on a processor and quick on a GPU. Derivatives are torch's own, so it also checks the native
backward pass, which is written by hand.

    project   every splat to its middle, conic and depth on the screen      kept for backward
    bin       pairs of splat and tile, sorted by tile, nearest first
    blend     [tiles, 256 pixels, splats] at a time; drawn again in backward, so that
              memory does not grow with the number of tiles
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendMissingError, UsageError
from penstock.export.omg4.rasteriser import Gradients, Scene
from penstock.export.omg4.training_loops import TrainingLoops
from penstock.loaders.splats.model import LOW_PASS, WEIGHT_CUTOFF

if TYPE_CHECKING:
    from torch import Tensor

    from penstock.runtime.splats.camera import Camera

Floats = NDArray[np.float32]

TILE = 16  # pixels
LEAST_ALPHA, MOST_ALPHA = 1 / 255, 0.99
LEAST_LEFT = 1e-4  # of a pixel: the splat that would leave less is not drawn, nor any behind it
CLAMP = 1.3  # of half the field of view, in the Jacobian
ROOM = 1 << 24  # pairs of a pixel and a splat at a time; about 1 GB while gradients are taken

NAMES = ("mean", "covariance", "opacity", "colour", "velocity", "t_center", "t_sigma")


def has_gpu() -> bool:
    """Whether torch is installed and has a GPU."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


@dataclass(frozen=True)
class Footprints:
    """m splats on the screen, nearest first.

    Attributes:
        values: [m, 9]: x, y, half the conic's xx, its xy, half its yy, alpha, and the colour.
        index: [m], in the scene.
        tiles: [pairs], ascending; splats: [pairs], into the footprints, ascending in each tile.
    """

    values: Tensor
    index: Tensor
    tiles: Tensor
    splats: Tensor


class TorchRasteriser:
    """On one device of torch's.

    Attributes:
        device: "cuda" or "cpu".
        dtype: "float32"; "float64" for checks.
        footprint: as SplatRenderer has it.
    """

    def __init__(
        self,
        device: str,
        dtype: str = "float32",
        footprint: str = "exact",
        threads: int | None = None,
    ) -> None:
        """
        Args:
            threads: of what is not drawing; None: one for each core.

        Raises:
            BackendMissingError: torch is not installed, or the GPU is not there.
        """
        if device == "cuda" and not has_gpu():
            raise BackendMissingError(
                "device 'cuda' needs torch and a GPU that it can use: pip install "
                "'penstock[export]', or use the device 'cpu'"
            )
        self.loops = TrainingLoops(threads)
        self.device = device
        self.dtype = dtype
        self.footprint = footprint
        self._last: tuple[Scene, Camera, dict[str, Tensor], Footprints] | None = None

    def draw(self, scene: Scene, camera: Camera, time: float) -> Floats:
        """The picture [h, w, 3]."""
        import torch

        arrays = {}
        for name in NAMES:
            array = getattr(scene, name)
            if array is not None:
                tensor = torch.tensor(array, dtype=getattr(torch, self.dtype), device=self.device)
                arrays[name] = tensor.requires_grad_()
        found = _footprints(arrays, camera, time, self.footprint)
        self._last = scene, camera, arrays, found
        across = -(-camera.width // TILE)
        down = -(-camera.height // TILE)
        picture = torch.zeros(
            across * down, TILE * TILE, 3, dtype=found.values.dtype, device=self.device
        )
        with torch.no_grad():
            for tiles, splats, held in _chunks(found):
                weights = _weights(found.values[splats], held, tiles, across)
                picture[tiles] = weights @ found.values[splats][:, :, 6:]
        rows = picture.reshape(down, across, TILE, TILE, 3).transpose(1, 2)
        whole = rows.reshape(down * TILE, across * TILE, 3)[: camera.height, : camera.width]
        result: Floats = whole.float().cpu().numpy()
        return np.ascontiguousarray(result)

    def backward(self, by_image: Floats) -> Gradients:
        """By the arrays of the last picture.

        Raises:
            UsageError: nothing was drawn, or the gradient is not of the picture's shape.
        """
        import torch

        if self._last is None:
            raise UsageError("there is no picture to take gradients of; call draw first")
        scene, camera, arrays, found = self._last
        if by_image.shape != (camera.height, camera.width, 3):
            raise UsageError(
                f"the gradient is {by_image.shape}; expected {(camera.height, camera.width, 3)}"
            )
        across = -(-camera.width // TILE)
        down = -(-camera.height // TILE)
        padded = torch.zeros(  # the gradient, and 1 in the image: tiles reach over its edge
            down * TILE, across * TILE, 4, dtype=found.values.dtype, device=self.device
        )
        inside = padded[: camera.height, : camera.width]
        inside[:, :, :3] = torch.tensor(by_image, dtype=padded.dtype)
        inside[:, :, 3] = 1
        by_tiles = padded.reshape(down, TILE, across, TILE, 4).transpose(1, 2)
        by_tiles = by_tiles.reshape(across * down, TILE * TILE, 4)
        wanted, counted = by_tiles[:, :, :3], by_tiles[:, :, 3:]
        by_values = torch.zeros_like(found.values)
        shares = torch.zeros_like(found.values[:, 0])
        for tiles, splats, held in _chunks(found):
            part = found.values.detach()[splats].requires_grad_()
            weights = _weights(part, held, tiles, across)
            total = ((weights @ part[:, :, 6:]) * wanted[tiles]).sum()
            gradient = torch.autograd.grad(total, part)[0] * held[:, :, None]
            by_values.index_add_(0, splats.reshape(-1), gradient.reshape(-1, 9))
            drawn = (weights.detach() * counted[tiles]).sum(dim=1) * held
            shares.index_add_(0, splats.reshape(-1), drawn.reshape(-1))
        by_arrays = torch.autograd.grad(
            found.values,
            list(arrays.values()),
            by_values,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        grown: dict[str, Floats] = dict(
            zip(arrays, (one.float().cpu().numpy() for one in by_arrays), strict=True)
        )
        weight, screen = np.zeros(scene.count, np.float32), np.zeros(scene.count, np.float32)
        index = found.index.cpu().numpy()
        weight[index] = shares.float().cpu().numpy()
        screen[index] = by_values[:, :2].norm(dim=1).float().cpu().numpy()
        return Gradients(
            grown["mean"],
            grown["covariance"],
            grown["opacity"],
            grown["colour"],
            grown.get("velocity"),
            grown.get("t_center"),
            grown.get("t_sigma"),
            weight,
            screen,
        )


def _footprints(
    arrays: dict[str, Tensor], camera: Camera, time: float, footprint: str
) -> Footprints:
    """Everything up to the pairs; only what can be seen."""
    import torch

    mean, alpha = arrays["mean"], arrays["opacity"]
    seen = torch.ones_like(alpha, dtype=torch.bool)
    if "t_center" in arrays:
        away = time - arrays["t_center"]
        weight = torch.exp(-0.5 * (away / arrays["t_sigma"]) ** 2)
        seen &= weight > WEIGHT_CUTOFF
        alpha = alpha * weight
        mean = mean + arrays["velocity"] * away
    rotation = torch.tensor(np.asarray(camera.rotation), dtype=mean.dtype, device=mean.device)
    shift = torch.tensor(np.asarray(camera.translation), dtype=mean.dtype, device=mean.device)
    x, y, z = rotation @ mean + shift[:, None]
    seen &= (alpha >= LEAST_ALPHA) & (z > camera.near)
    index = torch.nonzero(seen)[:, 0]
    index = index[torch.argsort(z[index], stable=True)]
    x, y, z, alpha = x[index], y[index], z[index], alpha[index]
    slopes = _slopes(camera, x / z, y / z, footprint)
    conic, box = _conics(arrays["covariance"][:, index], rotation, slopes, z)
    middle_x, middle_y = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
    colour = arrays["colour"][:, index]
    values = torch.stack([middle_x, middle_y, *conic, alpha, *colour], dim=1)
    usable = torch.isfinite(values).all(dim=1) & (box > 0).all(dim=0)
    values, index, box = values[usable], index[usable], box[:, usable]
    with torch.no_grad():
        tiles, splats = _pairs(values, box, camera)
    return Footprints(values, index, tiles, splats)


def _slopes(
    camera: Camera, right: Tensor, below: Tensor, footprint: str
) -> tuple[tuple[float, Tensor], tuple[float, Tensor]]:
    """Along x and y: (the focal length, where the Jacobian is taken, x / z or y / z [m])."""
    if footprint == "omg4-sentinel":  # a field of view of -1: native/core/splat_project.cpp
        tangent = math.tan(0.5)
        at = right.new_full(right.shape, -CLAMP * tangent)
        return (camera.width / (2 * tangent), at), (camera.height / (2 * tangent), at)

    def clamp(at: Tensor, focal: float, middle: float, size: int) -> Tensor:
        centre, reach = (size / 2 - middle) / focal, CLAMP * size / (2 * focal)
        return at.clamp(centre - reach, centre + reach)

    tx = clamp(right, camera.fx, camera.cx, camera.width)
    ty = clamp(below, camera.fy, camera.cy, camera.height)
    return (camera.fx, tx), (camera.fy, ty)


def _conics(
    covariance: Tensor,
    rotation: Tensor,
    slopes: tuple[tuple[float, Tensor], tuple[float, Tensor]],
    z: Tensor,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """(half xx, xy, half yy of the inverse footprints, the variances along x and y [2, m]; 0 where
    there is no footprint)."""
    import torch

    (fx, tx), (fy, ty) = slopes
    first = fx / z * (rotation[0][:, None] - tx * rotation[2][:, None])  # [3, m]
    second = fy / z * (rotation[1][:, None] - ty * rotation[2][:, None])
    xx, xy, xz, yy, yz, zz = covariance
    full = torch.stack(
        [torch.stack([xx, xy, xz]), torch.stack([xy, yy, yz]), torch.stack([xz, yz, zz])]
    )
    a = torch.einsum("im,ijm,jm->m", first, full, first) + LOW_PASS
    b = torch.einsum("im,ijm,jm->m", first, full, second)
    c = torch.einsum("im,ijm,jm->m", second, full, second) + LOW_PASS
    determinant = a * c - b * b
    usable = (determinant > 0) & (a > 0) & (c > 0)
    safe = torch.where(usable, determinant, torch.ones_like(determinant))
    box = torch.where(usable, torch.stack([a, c]), torch.zeros_like(torch.stack([a, c])))
    return (0.5 * c / safe, -b / safe, 0.5 * a / safe), box.detach()


def _pairs(values: Tensor, box: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """(tiles, splats) [pairs], by tile, in each nearest first."""
    import torch

    across, down = -(-camera.width // TILE), -(-camera.height // TILE)
    power = 2 * (torch.log(values[:, 5]) + math.log(255))
    half = torch.sqrt(power.clamp(min=0) * box)  # [2, m]
    low = ((values[:, :2].T - half) / TILE).floor()
    high = ((values[:, :2].T + half) / TILE).floor()
    most = torch.tensor([[across - 1], [down - 1]], dtype=low.dtype, device=low.device)
    inside = ((high >= 0) & (low <= most)).all(dim=0)
    first = low.clamp(min=0).minimum(most).long()
    sides = (high.clamp(min=0).minimum(most).long() - first + 1) * inside
    counts = sides[0] * sides[1]
    splats = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    starts = torch.cumsum(counts, 0) - counts
    number = torch.arange(len(splats), device=splats.device) - starts[splats]
    wide = sides[0][splats]
    tiles = (first[1][splats] + number // wide) * across + first[0][splats] + number % wide
    order = torch.argsort(tiles, stable=True)
    return tiles[order], splats[order]


def _chunks(found: Footprints) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(tiles [t], splats [t, k], which of them there are [t, k]) of tiles with similar lists."""
    import torch

    tiles, counts = torch.unique_consecutive(found.tiles, return_counts=True)
    starts = torch.cumsum(counts, 0) - counts
    order = torch.argsort(counts, stable=True)
    sizes = counts[order].tolist()
    begin = 0
    while begin < len(sizes):
        end = begin + 1
        while end < len(sizes) and (end + 1 - begin) * TILE * TILE * sizes[end] <= ROOM:
            end += 1
        chosen = order[begin:end]
        slots = torch.arange(sizes[end - 1], device=order.device)
        held = slots < counts[chosen][:, None]
        at = torch.where(held, starts[chosen][:, None] + slots, starts[chosen][:, None])
        yield tiles[chosen], found.splats[at], held
        begin = end


def _weights(values: Tensor, held: Tensor, tiles: Tensor, across: int) -> Tensor:
    """What share [t, 256, k] of each pixel each splat has; values [t, k, 9], held [t, k]."""
    import torch

    inside = torch.arange(TILE * TILE, device=tiles.device)
    px = (tiles % across * TILE)[:, None] + inside % TILE + 0.5  # [t, 256]
    py = torch.div(tiles, across, rounding_mode="floor")[:, None] * TILE + inside // TILE + 0.5
    dx = px[:, :, None] - values[:, None, :, 0]
    dy = py[:, :, None] - values[:, None, :, 1]
    a, b, c, alpha = (values[:, None, :, column] for column in range(2, 6))
    power = a * dx * dx + b * dx * dy + c * dy * dy
    covered = (alpha * torch.exp(-power)).clamp(max=MOST_ALPHA)
    drawn = (covered >= LEAST_ALPHA) & (power >= 0) & held[:, None, :]
    covered = torch.where(drawn, covered, torch.zeros_like(covered))
    after = torch.cumprod(1 - covered, dim=2)
    before = torch.cat([torch.ones_like(after[:, :, :1]), after[:, :, :-1]], dim=2)
    return torch.where(after >= LEAST_LEFT, covered * before, torch.zeros_like(covered))
