"""Splats as whole numbers: cells of a lattice, and indices into codebooks of every attribute.

What the export pipeline makes and what a .psplat file holds; decoding.py makes it a model again.
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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.loaders.splats.codebook import Codebook
from penstock.loaders.splats.model import Floats
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
