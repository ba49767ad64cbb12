"""Splats as scalars: each number rounded to a step, or kept where it is one of a few already.

    quantize_splats   steps that cost about what SPZ's and SOG's do in quality, or as asked
    exact_splats      models that were read from SPZ or SOG: their own levels, found again

Without codebooks to pay for, this is the better way for few splats, and for static scenes at high
quality. Shapes are stored in one form of the 24 that look the same (`canonical_shapes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.quantization import canonical_shapes
from penstock.loaders.splats.codebook import Codebook
from penstock.loaders.splats.encoded import OPPONENT, EncodedSplats, SubVector, scalar_sub_vector
from penstock.loaders.splats.model import Floats, SplatModel, SplatMotion
from penstock.loaders.splats.quaternions import keep_smallest, multiply
from penstock.quant.lattice import Lattice, digits_by_size

Doubles = NDArray[np.float64]

MOST_STEPS = 60_000  # between the lowest and the highest number of a column
MOST_LEVELS = 4096  # of a table that stands for an attribute's numbers
LEAST_SCALE = 1e-9  # world units; ln of 0 is not a number
MOST_LN_SCALE = 38.0
PALETTE_SHARE = 0.8  # of the splats: at most so many different sets of harmonics are a palette
SOG_LEVELS = 65535  # steps between the lowest and the highest coordinate, at most
MOST_OFF = 0.05  # of a step: float32 rounds by 0.003
FEW = 24  # numbers that no other step fits by chance
FRACTION_BITS = range(4, 17)  # of SPZ's positions
FREE_TURN = 0.5  # of the scale's step: what a turn may change a splat's outline by
ROUNDING = 1e-5  # of rotations' components, next to SPZ's step of 1.4e-3
LASTING = 8.0  # durations of the scene: a t_sigma that leaves 0.992 of the weight at its end
BRIEF = 0.1  # quantile of the t_sigmas: those that are shorter are placed no finer in time


@dataclass(frozen=True)
class Precision:
    """How fine the steps are.

    Attributes:
        position_parts: a splat's cell is at most its middle scale divided by this.
        scale: of ln scale; an error of half of it is a share of the size.
        rotation: of x, y, z of the quaternion with the largest w; twice the angle in radians.
        opacity: linear.
        colour: of the first SH coefficients; 0.28 of it is seen.
        rest: of the others.
        drift: of velocity times t_sigma, in middle scales of the scene's median splat.
        t_sigma: of ln t_sigma. time: of t_center, in the scene's shorter t_sigmas.
    """

    position_parts: float = 12.0
    scale: float = 1 / 14
    rotation: float = 1 / 110
    opacity: float = 1 / 200
    colour: float = 1 / 36
    rest: float = 1 / 20
    drift: float = 1 / 8
    t_sigma: float = 1 / 12
    time: float = 1 / 16

    def finer(self, factor: float) -> Precision:
        """All steps divided by a factor."""
        return Precision(
            self.position_parts * factor,
            *(
                step / factor
                for step in (
                    self.scale, self.rotation, self.opacity, self.colour, self.rest, self.drift,
                    self.t_sigma, self.time,
                )
            ),
        )  # fmt: skip


def quantize_splats(model: SplatModel, precision: Precision | None = None) -> EncodedSplats:
    """The model with every number rounded to its step, or to larger ones where 65,536 do not reach
    from the lowest to the highest."""
    steps = precision or Precision()
    scales, rotations = canonical_shapes(model.scales, model.rotations)
    rotations = without_free_turns(scales, rotations, FREE_TURN * steps.scale)
    logs = np.clip(np.log(np.maximum(scales, LEAST_SCALE)), -MOST_LN_SCALE, MOST_LN_SCALE)
    parts = _columns("scale", logs, steps.scale)
    parts += _columns("rotation", rotations[:, 1:], steps.rotation)
    parts += _columns("opacity", model.opacities[:, None].astype(np.float64), steps.opacity)
    parts += _columns("opponent", model.sh[:, 0] @ OPPONENT.T, steps.colour)
    parts += _rest(model.sh, steps.rest)
    means, motion = model.means.astype(np.float64), model.motion
    if motion is not None:
        size = float(np.median(scales[:, 1])) if model.count else 1.0
        more, means = _motion(motion, means, steps, max(size, LEAST_SCALE))
        parts += more
    lattice = Lattice.fit(means, bits=21)
    digits = digits_by_size(model.scales, lattice, steps.position_parts)
    return EncodedSplats(
        lattice=lattice,
        cells=lattice.cells(means, digits),
        parts=tuple(parts),
        degree=model.degree,
        digits=digits,
        start=None if motion is None else motion.start,
        end=None if motion is None else motion.end,
        fps=None if motion is None else motion.fps,
    )


def exact_splats(model: SplatModel) -> EncodedSplats | None:
    """A static model whose numbers are on few levels, on exactly those; None for any other.

    What comes back differs by the rounding of float32 only.
    """
    if model.dynamic or model.count == 0 or (model.scales <= 0).any():
        return None
    placed = _exact_lattice(model.means)
    if placed is None:
        return None
    lattice, cells = placed
    largest, three = keep_smallest(model.rotations)
    found = [
        _exact_columns("scale", np.log(model.scales.astype(np.float64)), 1e-6),
        _exact_columns("smallest_three", three, ROUNDING),
        _exact_columns("opacity", model.opacities[:, None].astype(np.float64), 1e-6),
        _exact_columns("dc", model.sh[:, 0].astype(np.float64), 1e-6),
    ]
    parts: list[SubVector] = []
    for columns in found:
        if columns is None:
            return None
        parts += columns
    rest = _palette(model.sh, None)
    if rest is None and model.sh[:, 1:].any():
        rest = _exact_columns("rest", _rest_columns(model.sh), 1e-6)
        if rest is None:
            return None
    parts += rest or []
    which = Codebook.uniform(0.0, 1.0, 4)
    parts.append(SubVector("largest", which, largest.astype(np.uint16)))
    return EncodedSplats(lattice, cells, tuple(parts), model.degree)


def without_free_turns(
    scales: NDArray[np.floating], rotations: NDArray[np.floating], tolerance: float
) -> Doubles:
    """Rotations without turns about a splat's own axes that hardly change it.

    A disc that is turned in its plane, or a needle about its length, is the same splat. What is
    left then has a component of zero, which costs nothing.

    Args:
        scales: [n, 3]. rotations: [n, 4], unit quaternions, w over 0.
        tolerance: how far the outline may move, as a share of the largest scale.
    """
    s = np.maximum(np.asarray(scales, np.float64), LEAST_SCALE)
    q = np.array(rotations, np.float64)
    largest, least = s.max(axis=1), s.min(axis=1)
    settled = largest**2 - least**2 <= tolerance * largest**2
    q[settled] = [1, 0, 0, 0]  # a ball
    for axis, (i, j) in ((3, (0, 1)), (1, (1, 2))):
        squares = q[:, 0] ** 2 + q[:, axis] ** 2
        turned = np.abs(2 * q[:, 0] * q[:, axis]) / np.maximum(squares, 1e-9)  # the sine
        turned[np.abs(q[:, axis]) > q[:, 0]] = 1  # over a quarter turn
        moved = np.abs(s[:, i] ** 2 - s[:, j] ** 2) / (np.maximum(s[:, i], s[:, j]) * largest)
        free = ~settled & (moved * turned <= tolerance) & (squares > 1e-6)
        back = np.zeros((int(free.sum()), 4))
        back[:, 0], back[:, axis] = q[free, 0], -q[free, axis]
        q[free] = multiply(q[free], back / np.sqrt(squares[free, None]))
        q[free, axis] = 0
        settled |= free  # a second turn would undo the first one's zero
    return np.asarray(q / np.linalg.norm(q, axis=1, keepdims=True), np.float64)


# ---------------------------------------------------------------- steps


def _columns(name: str, values: NDArray[np.floating], step: float) -> list[SubVector]:
    """A sub-vector for each column of values [n, c]; of larger steps where there are too many."""
    parts = []
    for k in range(values.shape[1]):
        column = values[:, k]
        reach = float(np.ptp(column)) if column.size else 0.0
        parts.append(scalar_sub_vector(f"{name}.{k}", column, max(step, reach / MOST_STEPS)))
    return parts


def _rest(sh: Floats, step: float) -> list[SubVector]:
    """Harmonics after the first: a palette where many splats have the same, else scalars."""
    if sh.shape[1] == 1 or not sh[:, 1:].any():
        return []
    palette = _palette(sh, step)
    return _columns("rest", _rest_columns(sh), step) if palette is None else palette


def _motion(
    motion: SplatMotion, means: Doubles, steps: Precision, size: float
) -> tuple[list[SubVector], Doubles]:
    """(the sub-vectors, the means [n, 3] at the t_centers that are kept)."""
    sigmas = motion.t_sigmas.astype(np.float64)
    centers, velocities = motion.t_centers.astype(np.float64), motion.velocities.astype(np.float64)
    # The drift of one that never fades would make the steps too coarse for all others' velocities.
    span = motion.end - motion.start
    inside = (centers >= motion.start) & (centers <= motion.end) & (span > 0)
    sigmas = np.where(inside, np.minimum(sigmas, LASTING * span), sigmas)
    brief = float(np.quantile(sigmas, BRIEF)) if sigmas.size else 1.0
    (kept,) = _columns("t_sigma", np.log(sigmas)[:, None], steps.t_sigma)
    (times,) = _columns("t_center", centers[:, None], max(steps.time * brief, 1e-9))
    held = np.exp(kept.values()[:, :1].astype(np.float64))
    drift = _columns("displacement", velocities * held, steps.drift * size)
    late = times.values()[:, :1].astype(np.float64) - centers[:, None]
    return [*drift, times, kept], means + velocities * late


# ---------------------------------------------------------------- levels that are there


def _exact_columns(name: str, values: Doubles, rounding: float) -> list[SubVector] | None:
    """A sub-vector for each column of [n, c], all with one codebook; None for too many levels.

    Args:
        rounding: numbers this near are the same.
    """
    keys = np.rint(values / rounding).astype(np.int64)
    unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    if len(unique) > MOST_LEVELS:
        return None
    levels = values.reshape(-1)[first]
    indices = inverse.reshape(values.shape)
    book, moved = _book(levels, rounding)
    return [SubVector(f"{name}.{k}", book, moved[indices[:, k]]) for k in range(values.shape[1])]


def _book(levels: Doubles, rounding: float) -> tuple[Codebook, NDArray[np.uint16]]:
    """(the codebook of ascending levels, of each level its entry)."""
    if len(levels) > 2:
        step = float(np.diff(levels).min())
        places = np.rint((levels - levels[0]) / step)
        step = float((levels[-1] - levels[0]) / places[-1])
        even = np.abs(levels - (levels[0] + places * step)).max() < 2 * rounding
        if even and places[-1] < 4 * len(levels):
            book = Codebook.uniform(float(levels[0]), step, int(places[-1]) + 1)
            return book, places.astype(np.uint16)
    return Codebook.table(levels), np.arange(len(levels)).astype(np.uint16)


def _rest_columns(sh: Floats) -> Doubles:
    """[n, 3 (k - 1)]."""
    return sh[:, 1:].reshape(len(sh), -1).astype(np.float64)


def _palette(sh: Floats, step: float | None) -> list[SubVector] | None:
    """One sub-vector of all harmonics after the first, where many splats have the same.

    Args:
        step: that the palette's numbers are rounded to; None: they are kept.
    """
    rows = np.ascontiguousarray(sh[:, 1:]).reshape(len(sh), -1)
    if rows.shape[1] == 0 or len(rows) == 0:
        return None
    as_bytes = (rows + np.float32(0)).view(np.dtype((np.void, rows.shape[1] * 4)))[:, 0]
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    if len(first) > min(PALETTE_SHARE * len(rows), 1 << 16) and len(first) > 1:
        return None
    sets = rows[first]
    if step is not None:
        book = Codebook.grid(sets, max(step, float(np.ptp(sets)) / MOST_STEPS))
    else:
        numbers, levels = np.unique(sets, return_inverse=True)
        if len(numbers) > MOST_LEVELS:
            return None
        book = Codebook.palette(levels.reshape(sets.shape), numbers)
    return [SubVector("rest.0", book, inverse.reshape(-1).astype(np.uint16))]


def _exact_lattice(means: Floats) -> tuple[Lattice, NDArray[np.uint32]] | None:
    """The lattice whose cells' middles the means [n, 3] are: SPZ's fixed point, or SOG's even
    steps of a logarithm; None for neither."""
    x = means.astype(np.float64)
    for fraction in FRACTION_BITS:
        places = np.rint(np.ldexp(x, fraction))
        if np.array_equal(np.ldexp(places, -fraction), x):
            low = places.min(axis=0)
            bits = max(1, int((places - low).max()).bit_length())
            if bits > 21:
                return None
            step = 2.0**-fraction
            corner = (low - 0.5) * step
            return _filled(bits, corner, np.full(3, step), places - low, False)
    u = np.sign(x) * np.log1p(np.abs(x))
    low, steps = u.min(axis=0), np.array([_even_step(column) for column in u.T])
    numbers = (u - low) / steps
    places = np.rint(numbers)
    if np.abs(numbers - places).max() > MOST_OFF:
        return None
    return _filled(16, low - 0.5 * steps, steps, places, True)


def _even_step(values: Doubles) -> float:
    """The step between levels that the values [n] may lie on, for all of them to be held to it.

    The lowest and the highest are as many steps apart as make whole numbers of a few others: not
    always all of `SOG_LEVELS`, for a level of detail has its bounds from splats that it left out.
    """
    reach = float(np.ptp(values))
    few = (np.sort(values)[:: max(1, len(values) // FEW)] - values.min()) / max(reach, 1e-12)
    counts = np.arange(1, SOG_LEVELS + 1)
    numbers = few * counts[:, None]  # [counts, few]
    fits = np.flatnonzero(np.abs(numbers - np.rint(numbers)).max(axis=1) <= MOST_OFF)
    return max(reach / float(counts[fits[0]] if len(fits) else SOG_LEVELS), 1e-12)


def _filled(
    bits: int, low: Doubles, step: Doubles, places: Doubles, logarithm: bool
) -> tuple[Lattice, NDArray[np.uint32]]:
    x, y, z = (float(v) for v in low)
    dx, dy, dz = (float(v) for v in step)
    return Lattice(bits, (x, y, z), (dx, dy, dz), logarithm), places.astype(np.uint32)
