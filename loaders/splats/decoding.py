"""From whole numbers back to a model: the reader's own arithmetic, block by block on threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from penstock import _native
from penstock.errors import FormatError
from penstock.loaders.splats.encoded import OPPONENT, EncodedSplats, SubVector, first_columns
from penstock.loaders.splats.model import Floats, SplatModel, unfilled_model
from penstock.loaders.splats.quaternions import expand_smallest
from penstock.quant.appearance_nets import BLOCK as NETS_BLOCK
from penstock.quant.appearance_nets import AppearanceNets, evaluate, read_nets

MOST_LN_SCALE, MOST_LN_SIGMA = 40.0, 20.0
BLOCK = 1 << 13  # splats that are decoded at a time, so that they stay in the cache


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

    parts = _parts_of(encoded)

    def decode(begin: int) -> None:
        columns = _Columns(encoded, parts, slice(begin, begin + block))
        _decode_block(encoded, columns, model, at + begin, source, nets)

    with ThreadPoolExecutor(threads) as pool:
        list((pool.map if threads > 1 else map)(decode, range(0, n, block)))


def _decode_block(
    encoded: EncodedSplats,
    columns: _Columns,
    model: SplatModel,
    at: int,
    source: object,
    nets: AppearanceNets | None,
) -> None:
    """Fill a model from splat `at` on with some splats, so few that they stay in the cache."""
    some, to = columns.some, slice(at, at + columns.count)
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
            opponent, axes = columns.of("opponent", 3).T, OPPONENT.astype(np.float32)
            for channel in range(3):  # a product of matrices rounds otherwise for other n
                colour = opponent[0] * axes[0, channel]
                colour += opponent[1] * axes[1, channel]
                colour += opponent[2] * axes[2, channel]
                sh[:, 0, channel] = colour
        else:
            columns.fill("dc", sh[:, 0])
        columns.fill("rest", sh.reshape(len(sh), -1)[:, 3:])
    model.rotations[to] = _rotations(columns, source, some.start)


Parts = dict[str, list[tuple[int, SubVector]]]


def _parts_of(encoded: EncodedSplats) -> Parts:
    """Of each attribute the first columns and sub-vectors."""
    found: Parts = {}
    for part, first in zip(encoded.parts, first_columns(encoded.parts), strict=True):
        found.setdefault(part.attribute, []).append((first, part))
    return found


class _Columns:
    """Columns of some splats' attributes, gathered from their sub-vectors."""

    def __init__(self, encoded: EncodedSplats, parts: Parts, some: slice = slice(None)) -> None:
        self.some = some
        self.count = len(encoded.cells[some])
        self._parts = parts

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
            indices = np.ascontiguousarray(part.indices[self.some])
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
        vector = columns.of("rotation", 3).T
        four = [np.sqrt(np.maximum(0, 1 - _squares(vector))), *vector]
    else:
        four = list(columns.of("rotation", 4).T)
    lengths = np.sqrt(_squares(four))
    if lengths.size and not lengths.min() > 1e-6:
        raise FormatError(
            f"{source}: rotations of splat {begin + int(np.argmin(lengths))} is zero; expected a "
            "quaternion; the file is damaged, export it again"
        )
    quaternions = np.empty((columns.count, 4), np.float32)
    for component, values in enumerate(four):
        np.divide(values, lengths, out=quaternions[:, component])
    return quaternions


def _squares(columns: Sequence[Floats] | Floats) -> Floats:
    """Sums of the squares of columns [d] of [n], added in order: the same whatever n is."""
    total: Floats = columns[0] * columns[0]
    for column in columns[1:]:
        total = total + column * column
    return total


def time_columns(encoded: EncodedSplats) -> tuple[Floats, Floats]:
    """(t_centers, t_sigmas), [n] each, of a dynamic scene."""
    columns = _Columns(encoded, _parts_of(encoded))
    return columns.of("t_center", 1)[:, 0], _sigmas(columns)


def _sigmas(columns: _Columns) -> Floats:
    logarithms = columns.of("t_sigma", 1)[:, 0]
    sigmas: Floats = np.exp(np.clip(logarithms, -MOST_LN_SIGMA, MOST_LN_SIGMA))
    return sigmas
