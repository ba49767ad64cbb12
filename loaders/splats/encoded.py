"""Splats as whole numbers: cells of a lattice, and indices into codebooks of every attribute.

What the export pipeline makes, what a .psplat file holds, and how it becomes a model again.
docs/psplat-format.md has the attributes and their meaning.

    attribute       columns  meaning
    scale           3        ln of the standard deviations, world units
    rotation        3 or 4   x, y, z of a unit quaternion with w >= 0; or w, x, y, z
    smallest_three  3        with `largest`: a quaternion without its largest component
    largest         1        0 to 3 of w, x, y, z: which one that is
    opacity         1        linear
    dc, opponent    3        SH coefficient 0, of red, green and blue or on opponent axes
    rest            9 24 45  the other coefficients, coefficient by coefficient, channels last
    displacement    3        velocity times t_sigma, world units
    t_center        1        seconds
    t_sigma         1        ln of seconds
    appearance      6        features for the implicit nets
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.errors import FormatError, UsageError
from penstock.loaders.splats.codebook import Codebook as Codebook
from penstock.loaders.splats.model import Floats, SplatModel, unfilled_model
from penstock.loaders.splats.quaternions import expand_smallest
from penstock.quant.appearance_nets import BLOCK as NETS_BLOCK
from penstock.quant.appearance_nets import AppearanceNets, evaluate, read_nets
from penstock.quant.entropy import width_of
from penstock.quant.lattice import Cells, Lattice

Indices = NDArray[np.uint16]

ATTRIBUTES: dict[str, tuple[int, ...]] = {
    "scale": (3,), "rotation": (3, 4), "smallest_three": (3,), "largest": (1,), "opacity": (1,),
    "dc": (3,), "opponent": (3,), "rest": (9, 24, 45), "displacement": (3,), "t_center": (1,),
    "t_sigma": (1,), "appearance": (6,),
}  # fmt: skip
"""Name -> columns that it may have; the place in the table is its number in a file."""
OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3.0], [2.0], [6.0]])
"""Rows are orthonormal axes of colour: grey, red against blue, green against both."""
MOST_LN_SCALE, MOST_LN_SIGMA = 40.0, 20.0
BLOCK = 1 << 13  # splats that are decoded at a time, so that they stay in the cache


@dataclass(frozen=True, eq=False)
class SubVector:
    """Some columns of an attribute: for every splat an entry of a codebook.

    Attributes:
        name: the attribute's name, to the first dot; what follows tells sub-vectors apart.
        codebook: that may be shared with other sub-vectors.
        indices: [n].
        first: column that it begins at, where it refines columns that others have; None: the next
            one that no sub-vector before it has.
    """

    name: str
    codebook: Codebook
    indices: Indices
    first: int | None = None

    @property
    def attribute(self) -> str:
        return self.name.partition(".")[0]

    def values(self) -> Floats:
        """[n, d], what the indices stand for."""
        return self.codebook.entries[self.indices]


@dataclass(frozen=True, eq=False)
class Net:
    """One array of the implicit nets (penstock.quant.appearance_nets)."""

    name: str
    values: NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class EncodedSplats:
    """n splats. What is not there is zero; n may be 0.

    Attributes:
        lattice: that the cells are of.
        cells: [n, 3].
        parts: the attributes' columns; sub-vectors of an attribute follow each other.
        degree: of the spherical harmonics, 0 to 3.
        digits: [n], leading digits kept of the cells' Morton codes; None: all.
        start, end: seconds, of a dynamic scene; None of a static one.
        fps: frames a second, where known.
        nets: implicit appearance, where there are any.
    """

    lattice: Lattice
    cells: Cells
    parts: tuple[SubVector, ...]
    degree: int
    digits: NDArray[np.uint8] | None = None
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    nets: tuple[Net, ...] = ()

    @property
    def count(self) -> int:
        return len(self.cells)

    @property
    def dynamic(self) -> bool:
        return self.start is not None

    @property
    def fixed_bits(self) -> float:
        """Bits a splat with numbers of fixed width: before entropy coding."""
        bits = float(sum(width_of(part.codebook.size) for part in self.parts))
        if self.digits is None or self.count == 0:
            return bits + 3 * self.lattice.bits
        return bits + width_of(self.lattice.bits) + 3 * float(self.digits.mean())

    def select(self, order: NDArray[np.integer]) -> EncodedSplats:
        """The splats at these indices, in this order."""
        return replace(
            self,
            cells=np.ascontiguousarray(self.cells[order]),
            parts=tuple(replace(part, indices=part.indices[order]) for part in self.parts),
            digits=None if self.digits is None else self.digits[order],
        )


def scalar_sub_vector(name: str, values: NDArray[np.floating], step: float) -> SubVector:
    """Values [n] as multiples of a step above the lowest.

    Raises:
        UsageError: a value is not finite, or there are over 65,536 steps.
    """
    v = np.asarray(values, np.float64)
    low = float(v.min()) if v.size else 0.0
    with np.errstate(all="ignore"):
        levels = np.rint((v - low) / step)
    if not (step > 0 and np.isfinite(levels).all() and levels.max(initial=0) < 1 << 16):
        raise UsageError(
            f"{name}: {v.size} values from {low:g} do not fit 65536 steps of {step:g}; take a "
            "larger step"
        )
    size = int(levels.max(initial=0)) + 1
    return SubVector(name, Codebook.uniform(low, step, size), levels.astype(np.uint16))


def first_columns(parts: Sequence[SubVector]) -> list[int]:
    """The column of its attribute that each sub-vector begins at."""
    ends: dict[str, int] = {}
    found = []
    for part in parts:
        first = ends.get(part.attribute, 0) if part.first is None else part.first
        found.append(first)
        end = first + part.codebook.columns
        ends[part.attribute] = max(ends.get(part.attribute, 0), end)
    return found


# ---------------------------------------------------------------- back to a model


def decode_splats(encoded: EncodedSplats, source: object = "the encoded splats") -> SplatModel:
    """The model that the numbers stand for: the reader's own arithmetic.

    Indices must be below their codebook's size, as a reader and `check_encoded` see to.

    Args:
        source: what errors begin with.

    Raises:
        FormatError: a quaternion of zeros; nets that are damaged.
    """
    degree, times = encoded.degree, (encoded.start, encoded.end, encoded.fps)
    model = unfilled_model(encoded.count, degree, *times)
    decode_into(model, 0, encoded, source)
    return model


def decode_into(
    model: SplatModel, at: int, encoded: EncodedSplats, source: object, *, threads: int = 1
) -> None:
    """Fill a model from splat `at` on, as `decode_splats`; the same for any number of threads."""
    n, block, nets = encoded.count, BLOCK, None
    if encoded.nets:
        block = NETS_BLOCK  # whose matrices round otherwise for other n
        arrays = {net.name: net.values for net in encoded.nets}
        nets = read_nets(arrays, encoded.degree, source)

    def decode(begin: int) -> None:
        _decode_block(encoded, slice(begin, begin + block), model, at + begin, source, nets)

    with ThreadPoolExecutor(threads) as pool:
        list((pool.map if threads > 1 else map)(decode, range(0, n, block)))


def _decode_block(
    encoded: EncodedSplats,
    some: slice,
    model: SplatModel,
    at: int,
    source: object,
    nets: AppearanceNets | None,
) -> None:
    """Fill a model from splat `at` on with some splats, so few that they stay in the cache."""
    columns = _Columns(encoded, some)
    to = slice(at, at + columns.count)
    digits = None if encoded.digits is None else encoded.digits[some]
    model.means[to] = encoded.lattice.centres(encoded.cells[some], digits)
    scales, sh = model.scales[to], model.sh[to]
    columns.fill("scale", scales)
    np.exp(np.clip(scales, -MOST_LN_SCALE, MOST_LN_SCALE, out=scales), out=scales)
    centers = None
    if model.motion is not None:
        centers, sigmas = model.motion.t_centers[to], model.motion.t_sigmas[to]
        columns.fill("t_center", centers[:, None])
        sigmas[:] = _sigmas(columns)
        np.divide(columns.of("displacement", 3), sigmas[:, None], out=model.motion.velocities[to])
    if nets is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            features = columns.of("appearance", 6)
            evaluate(nets, model.means[to], centers, features, out=(sh, model.opacities[to]))
        if not (np.isfinite(sh).all() and np.isfinite(model.opacities[to]).all()):
            raise FormatError(
                f"{source}: the nets give colours or opacities that are not finite; the file is "
                "damaged, export it again"
            )
    else:
        np.clip(columns.of("opacity", 1)[:, 0], 0, 1, out=model.opacities[to])
        if columns.has("opponent"):
            opponent, axes = columns.of("opponent", 3), OPPONENT.astype(np.float32)
            sh[:, 0] = opponent[:, 0, None] * axes[0]
            for axis in (1, 2):  # a product of matrices rounds otherwise for other n
                sh[:, 0] += opponent[:, axis, None] * axes[axis]
        else:
            columns.fill("dc", sh[:, 0])
        columns.fill("rest", sh.reshape(len(sh), -1)[:, 3:])
    model.rotations[to] = _rotations(columns, source, some.start)


class _Columns:
    """Columns of some splats' attributes, gathered from their sub-vectors."""

    def __init__(self, encoded: EncodedSplats, some: slice = slice(None)) -> None:
        self._some = some
        self.count = len(encoded.cells[some])
        self._parts: dict[str, list[tuple[int, SubVector]]] = {}
        for part, first in zip(encoded.parts, first_columns(encoded.parts), strict=True):
            self._parts.setdefault(part.attribute, []).append((first, part))

    def has(self, attribute: str) -> bool:
        return attribute in self._parts

    def width(self, attribute: str) -> int:
        parts = self._parts.get(attribute, [])
        return max((first + part.codebook.columns for first, part in parts), default=0)

    def of(self, attribute: str, width: int) -> Floats:
        """[n, width]."""
        out = np.empty((self.count, width), np.float32)
        self.fill(attribute, out)
        return out

    def fill(self, attribute: str, out: Floats) -> None:
        """Write columns [n, width], zeros where the attribute has none."""
        written: set[int] = set()
        parts = []
        for first, part in self._parts.get(attribute, []):
            own = range(first, first + part.codebook.columns)
            adds = not written.isdisjoint(own)
            if adds and not written.issuperset(own):
                out[:, sorted(set(own) - written)] = 0
            written.update(own)
            indices = np.ascontiguousarray(part.indices[self._some])
            parts.append((part.codebook.entries, indices, first, adds))
        for column in set(range(out.shape[1])) - written:
            out[:, column] = 0
        _native.gather_entries(parts, out)


def _rotations(columns: _Columns, source: object, begin: int) -> Floats:
    """Unit quaternions [n, 4] of splats from `begin` on."""
    if columns.has("largest"):
        largest = np.clip(np.rint(columns.of("largest", 1)[:, 0]), 0, 3).astype(np.intp)
        return expand_smallest(largest, columns.of("smallest_three", 3)).astype(np.float32)
    if columns.width("rotation") == 3:
        vector = columns.of("rotation", 3)
        squares = _squares(vector)[:, None]
        quaternions = np.concatenate([np.sqrt(np.maximum(0, 1 - squares)), vector], axis=1)
    else:
        quaternions = columns.of("rotation", 4)
    lengths = np.sqrt(_squares(quaternions))
    if lengths.size and not lengths.min() > 1e-6:
        raise FormatError(
            f"{source}: rotations of splat {begin + int(np.argmin(lengths))} is zero; expected a "
            "quaternion; the file is damaged, export it again"
        )
    quaternions /= lengths[:, None]
    return quaternions


def _squares(rows: Floats) -> Floats:
    """Sums of the squares of rows [n, d], added in order: the same whatever n is."""
    total: Floats = rows[:, 0] * rows[:, 0]
    for column in range(1, rows.shape[1]):
        total = total + rows[:, column] * rows[:, column]
    return total


def time_columns(encoded: EncodedSplats) -> tuple[Floats, Floats]:
    """(t_centers, t_sigmas), [n] each, of a dynamic scene."""
    columns = _Columns(encoded)
    return columns.of("t_center", 1)[:, 0], _sigmas(columns)


def _sigmas(columns: _Columns) -> Floats:
    logarithms = columns.of("t_sigma", 1)[:, 0]
    sigmas: Floats = np.exp(np.clip(logarithms, -MOST_LN_SIGMA, MOST_LN_SIGMA))
    return sigmas


# ---------------------------------------------------------------- checks


def attributes_problem(
    found: dict[str, set[int]], *, degree: int, dynamic: bool, nets: bool
) -> str | None:
    """What is wrong with the columns that there are of each attribute, or None."""
    for name, columns in found.items():
        if columns != set(range(len(columns))) or len(columns) not in ATTRIBUTES[name]:
            widths = " or ".join(map(str, ATTRIBUTES[name]))
            return (
                f"attribute '{name}' has columns {sorted(columns)[:8]}, expected {widths} columns"
            )
    given = set(found)
    needed = {"scale"} | ({"t_center", "t_sigma"} if dynamic else set())
    needed |= {"smallest_three", "largest"} if "largest" in given else {"rotation"}
    needed |= {"appearance"} if nets else {"opacity"}
    if not needed <= given:
        return f"attribute '{min(needed - given)}' is missing"
    colours = given & {"dc", "opponent"}
    if len(colours) != (0 if nets else 1):
        return (
            f"the colours are {sorted(colours) or 'missing'}, expected one of 'dc' and 'opponent'"
        )
    foreign = {"displacement", "t_center", "t_sigma"} if not dynamic else set()
    foreign |= {"opacity", "rest"} if nets else {"appearance"}
    foreign |= {"rotation"} if "largest" in given else {"smallest_three"}
    if given & foreign:
        return f"attribute '{min(given & foreign)}' has no meaning in this scene"
    if "rest" in found and len(found["rest"]) != 3 * ((degree + 1) ** 2 - 1):
        return f"attribute 'rest' has {len(found['rest'])} columns, which degree {degree} has not"
    return None


def check_encoded(encoded: EncodedSplats) -> None:
    """Refuse what no file could hold.

    Raises:
        UsageError: it names the field.
    """
    problem = encoded.lattice.problem()
    if problem is not None:
        raise UsageError(f"the lattice has {problem}")
    if not 0 <= encoded.degree <= 3:
        raise UsageError(f"SH degree {encoded.degree}; expected 0 to 3")
    if (encoded.start is None) != (encoded.end is None):
        raise UsageError("start and end go together")
    n, bits = encoded.count, encoded.lattice.bits
    cells, digits = encoded.cells, encoded.digits
    if cells.dtype != np.uint32 or cells.shape != (n, 3) or cells.max(initial=0) >= 1 << bits:
        raise UsageError(f"cells of shape {cells.shape} must be [n, 3] uint32 below 2^{bits}")
    if digits is not None and (
        digits.dtype != np.uint8
        or digits.shape != (n,)
        or not ((digits >= 1) & (digits <= bits)).all()
    ):
        raise UsageError(f"digits of shape {digits.shape} must be [n] uint8 of 1 to {bits}")
    found: dict[str, set[int]] = {}
    for part, first in zip(encoded.parts, first_columns(encoded.parts), strict=True):
        if part.attribute not in ATTRIBUTES:
            raise UsageError(f"'{part.name}' is no attribute; known are {', '.join(ATTRIBUTES)}")
        if part.indices.dtype != np.uint16 or part.indices.shape != (n,):
            raise UsageError(f"indices of '{part.name}' must be [{n}] uint16")
        if n and int(part.indices.max()) >= part.codebook.size:
            raise UsageError(
                f"'{part.name}' has index {int(part.indices.max())}; its codebook has "
                f"{part.codebook.size} entries"
            )
        own = range(first, first + part.codebook.columns)
        found.setdefault(part.attribute, set()).update(own)
    wrong = attributes_problem(
        found, degree=encoded.degree, dynamic=encoded.dynamic, nets=bool(encoded.nets)
    )
    if n and wrong is not None:
        raise UsageError(wrong)
