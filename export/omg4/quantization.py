"""A model as indices into codebooks: sub-vector quantization (OMG4, section 3), and positions.

The paper stores a rotor splat: two quaternions, four scales. Here it is what that splat is when it
is drawn: shape, drift and time. A shape is stored in one form of the 24 that look the same: axes by
falling length, then the quaternion with the largest w of the four that are left, which saves 4.6
bits of 26 or makes three scalars of 7 bits as good as two codebooks of 2^13.

Each number is quantized after those that it can make good: drift by the t_sigma that was kept, the
mean by the t_center that was kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from penstock.export.omg4.settings import BookSizes
from penstock.export.omg4.settling import LASTING
from penstock.loaders.splats.codebook import Codebook
from penstock.loaders.splats.decoding import MOST_LN_SIGMA
from penstock.loaders.splats.encoded import OPPONENT, EncodedSplats, SubVector, scalar_sub_vector
from penstock.loaders.splats.model import Floats, SplatModel, SplatMotion
from penstock.loaders.splats.quaternions import Doubles, from_matrices, matrices, multiply
from penstock.quant.lattice import Lattice, digits_by_size
from penstock.quant.vector_quantization import (
    BookPlan,
    Quantized,
    codes_within,
    quantize_columns,
)

COLOURS = ("opacity", "opponent", "rest")  # attributes
BANDS = (9, 15, 21)  # columns of `rest` of each degree
LEAST_SCALE = 1e-9  # world units; ln of 0 is not a number
MOST_FLOAT16 = 6e4
SMALL = 0.05  # quantile of the middle scales: splats that are smaller have no finer places
REST_STEP = 1 / 128  # of the numbers of the harmonics' codebooks
MOST_STEPS = 65_000  # between the least and the greatest of numbers on a grid


def encode_model(
    model: SplatModel,
    books: BookSizes,
    *,
    weights: NDArray[np.floating] | None = None,
    features: NDArray[np.float32] | None = None,
    seed: int = 0,
) -> EncodedSplats:
    """The model in the form in which it is written.

    Args:
        weights: [n], how much each splat's error counts.
        features: [n, 6], of implicit nets, which then stand for colour and opacity; the caller
            adds the nets.

    Raises:
        UsageError: a number that no codebook holds.
    """
    scales, rotations = canonical_shapes(model.scales, model.rotations)
    maker = _Maker(books, weights, seed, model.count)
    parts = maker.vectors("scale", np.log(np.maximum(scales, LEAST_SCALE)), books.scale)
    columns = rotations[:, 1:] if len(books.rotation) != 2 else rotations
    parts += maker.vectors("rotation", columns, books.rotation)
    if features is None:
        parts += _colours(maker, model, books)
    else:
        parts += maker.vectors("appearance", features, books.appearance)
    means, motion = model.means.astype(np.float64), model.motion
    if motion is not None:
        more, means = _motion(maker, motion, means, books)
        parts += more
    lattice, digits = _lattice(means, model.scales, books)  # of the means as they are stored
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


def encode_colours(
    encoded: EncodedSplats,
    model: SplatModel,
    books: BookSizes,
    *,
    weights: NDArray[np.floating] | None = None,
    seed: int = 0,
) -> EncodedSplats:
    """The same with the model's colours and opacities; everything else stays as it is encoded.

    Args:
        model: of the same splats in the same order.

    Raises:
        UsageError: a number that no codebook holds.
    """
    maker = _Maker(books, weights, seed, model.count)
    parts = [part for part in encoded.parts if part.attribute not in COLOURS]
    return replace(encoded, parts=(*parts, *_colours(maker, model, books)))


def _colours(maker: _Maker, model: SplatModel, books: BookSizes) -> list[SubVector]:
    parts = maker.vectors("opacity", model.opacities[:, None], books.opacity)
    parts += maker.vectors("opponent", model.sh[:, 0] @ OPPONENT.T, books.colour)
    return parts + _rest(maker, model.sh, books)


def canonical_shapes(
    scales: NDArray[np.floating], rotations: NDArray[np.floating]
) -> tuple[Doubles, Doubles]:
    """The same covariances with scales [n, 3] descending and w of the quaternions [n, 4] as large
    as it can be.

    Turning a splat by half a turn about one of its own axes does not change it: q becomes q times
    i, j or k, which brings another component to the place of w.
    """
    s = np.asarray(scales, np.float64)
    order = np.argsort(-s, axis=1, kind="stable")
    axes = np.take_along_axis(matrices(rotations), order[:, None, :], axis=2)
    axes[:, :, 2] *= np.linalg.det(axes)[:, None]  # 1 or -1: a rotation, not a reflection
    q = from_matrices(axes)
    largest = np.argmax(np.abs(q), axis=1)
    conjugates = np.diag([1.0, -1.0, -1.0, -1.0])
    q = multiply(q, conjugates[largest])
    q *= np.where(q[:, :1] < 0, -1.0, 1.0)
    return np.take_along_axis(s, order, axis=1), q


def _lattice(
    means: Doubles, scales: Floats, books: BookSizes
) -> tuple[Lattice, NDArray[np.uint8] | None]:
    """Cells as fine as the small splats ask for, and how much of their digits each splat keeps."""
    parts = books.position_parts
    if parts is None or len(means) == 0:
        return Lattice.fit(means, bits=books.position), None
    middle = np.sort(scales.astype(np.float64), axis=1)[:, 1]
    extent = float(np.ptp(means, axis=0).max())
    wanted = max(float(np.quantile(middle, SMALL)) / parts, 1e-30)
    bits = math.ceil(math.log2(max(extent / wanted, 2)))
    lattice = Lattice.fit(means, bits=min(bits, books.position))
    return lattice, digits_by_size(scales, lattice, parts)


class _Maker:
    """Makes sub-vectors of attributes with the same weights, and other seeds for each."""

    def __init__(
        self, books: BookSizes, weights: NDArray[np.floating] | None, seed: int, count: int
    ) -> None:
        self._books, self._weights, self._seed, self._count = books, weights, seed, count

    def vectors(
        self,
        name: str,
        values: NDArray[np.floating],
        bits: Sequence[int],
        counting: NDArray[np.floating] | None = None,
    ) -> list[SubVector]:
        """Sub-vectors `name.0`, `name.1`... of equal parts of values [n, c], as many as there are
        bits.

        Args:
            counting: [n], a factor of the weights; None: 1.
        """
        columns = values.shape[1]
        widths = [columns // len(bits)] * len(bits)
        found = self.quantized(values, bits, widths, counting)
        return [
            SubVector(f"{name}.{k}", Codebook.half(one.codebook), one.indices)
            for k, one in enumerate(found)
        ]

    def quantized(
        self,
        values: NDArray[np.floating],
        bits: Sequence[int],
        widths: Sequence[int],
        counting: NDArray[np.floating] | None = None,
    ) -> list[Quantized]:
        plan = [
            BookPlan(
                width,
                codes_within(1 << one, self._count, width, self._books.bytes_a_splat),
            )
            for width, one in zip(widths, bits, strict=True)
        ]
        self._seed += len(plan)
        held = np.clip(values, -MOST_FLOAT16, MOST_FLOAT16).astype(np.float32)
        weights = self._weights
        if counting is not None:
            weights = counting if weights is None else weights * counting
        return quantize_columns(held, plan, weights=weights, seed=self._seed)


def _rest(maker: _Maker, sh: Floats, books: BookSizes) -> list[SubVector]:
    """The harmonics but the constant: a codebook a degree, of multiples of a step."""
    values = sh[:, 1:].reshape(len(sh), 3 * (sh.shape[1] - 1))
    if values.shape[1] == 0 or not values.any():
        return []
    degrees = {9: 1, 24: 2, 45: 3}[values.shape[1]]
    bits = books.rest if len(books.rest) == 1 else books.rest[:degrees]
    widths = [values.shape[1]] if len(books.rest) == 1 else list(BANDS[:degrees])
    found = maker.quantized(values, bits, widths)
    step = max(REST_STEP, float(np.ptp(values)) / MOST_STEPS)
    return [
        SubVector(f"rest.{k}", Codebook.grid(one.codebook.astype(np.float32), step), one.indices)
        for k, one in enumerate(found)
    ]


def _motion(
    maker: _Maker, motion: SplatMotion, means: Doubles, books: BookSizes
) -> tuple[list[SubVector], Doubles]:
    """(sub-vectors of time and drift, the means [n, 3] at the t_centers that are kept)."""
    span = motion.end - motion.start if motion.end > motion.start else 1.0
    centers = motion.t_centers.astype(np.float64)
    farthest = np.maximum(np.abs(centers - motion.start), np.abs(centers - motion.end))
    # What hardly fades while the scene lasts may as well fade a little: the drift after one t_sigma
    # would be more than a codebook holds, and with it the velocity would be lost.
    longest = np.maximum(LASTING * farthest, span / (1 << books.time))
    logs = np.log(np.minimum(motion.t_sigmas.astype(np.float64), longest))[:, None]
    logs = np.minimum(logs, MOST_LN_SIGMA)
    sigma_parts = maker.vectors("t_sigma", logs, books.t_sigma)
    sigmas = np.exp(sigma_parts[0].values()[:, :1].astype(np.float64))
    velocities = motion.velocities.astype(np.float64)
    # An error of the drift puts the splat so far off only where it is seen for a t_sigma.
    seen = np.square(np.minimum(farthest / sigmas[:, 0], 1))
    drift = maker.vectors("displacement", velocities * sigmas, books.displacement, counting=seen)
    # Finer steps than 65,535 from the first t_center to the last no index holds.
    apart = float(np.ptp(motion.t_centers.astype(np.float64))) if len(means) else 0.0
    step = max(span / (1 << books.time), apart / 65_535)
    times = scalar_sub_vector("t_center", motion.t_centers, step)
    late = times.values()[:, 0].astype(np.float64) - motion.t_centers
    # One that crosses the scene within a step of time must not make everybody's cells coarse.
    far = float(np.ptp(means, axis=0).max()) if len(means) else 0.0
    shift = np.clip(velocities * late[:, None], -far, far)
    return [*sigma_parts, *drift, times], means + shift
