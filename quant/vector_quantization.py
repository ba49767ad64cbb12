"""Vectors as indices into a codebook: weighted k-means, the same result for the same seed.

Sub-vector quantization (OMG, arXiv 2503.16924; OMG4, arXiv 2510.03857) cuts an attribute's columns
into short sub-vectors and gives each a codebook of its own, so that a few small codebooks stand for
the product of their sizes.

    1 column     Lloyd's algorithm on sorted values, exact in each step
    2 or more    k-means over mini-batches, started by k-means|| (Bahmani et al., arXiv 1203.6402)
    few values   as many distinct ones as there are codes or fewer: each becomes a code, no loss

Codebooks are float16, as they are stored; indices are of the nearest code after that rounding.
Sums run in the order that numpy's BLAS takes: the same on one machine, not on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

Floats = NDArray[np.float32]

MOST_CODES = 1 << 16  # indices are uint16
F16_MAX = 65504.0
ROUNDS = 10
PER_CODE = 16  # vectors of a mini-batch for each code
LEAST_BATCH = 1 << 14
KEPT = 0.6  # of the sums of earlier mini-batches, at each later one
FLOOR = 1e-3  # of the mean weight: what hardly counts still gets a code near it
ROOM = 1 << 22  # distances that are held at a time
QUANTILES = 4096


@dataclass(frozen=True)
class BookPlan:
    """Of one sub-vector: how many columns, and codes at most."""

    columns: int
    codes: int


@dataclass(frozen=True)
class Quantized:
    """Vectors [n, d] as indices.

    Attributes:
        codebook: [k, d] float16; of one column ascending, else the most frequent code first.
            Every code is used.
        indices: [n] uint16.
    """

    codebook: NDArray[np.float16]
    indices: NDArray[np.uint16]

    def decode(self) -> Floats:
        """[n, d], what the indices stand for."""
        return self.codebook.astype(np.float32)[self.indices]


def quantize(
    vectors: Floats,
    codes: int,
    *,
    weights: NDArray[np.floating] | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> Quantized:
    """The codebook of at most `codes` vectors with the least weighted squared error found.

    Args:
        vectors: [n, d]; n may be 0.
        weights: [n], 0 or more, of each vector's squared error; None: all alike.
        rounds: of k-means; more come closer to a minimum.

    Raises:
        UsageError: shapes, codes outside 1 to 65,536, a weight that is negative or not finite, or a
            value that float16 does not hold.
    """
    x, w = _checked(vectors, codes, weights)
    if len(x) == 0:
        return Quantized(np.zeros((0, x.shape[1]), np.float16), np.zeros(0, np.uint16))
    exact = _distinct(x.astype(np.float16), codes)
    if exact is not None:
        return _ordered(*exact)
    if x.shape[1] == 1:
        book = _lloyd(x[:, 0], w, codes, rounds)[:, None]
    else:
        book = _k_means(x, w, codes, rounds, np.random.default_rng(seed))
    rounded = book.astype(np.float16)
    indices, _ = nearest(x, rounded.astype(np.float32))
    return _ordered(rounded, indices)


def quantize_columns(
    values: Floats,
    plan: Sequence[BookPlan],
    *,
    weights: NDArray[np.floating] | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> list[Quantized]:
    """Sub-vectors of the columns [n, c], one after another as planned.

    Raises:
        UsageError: as `quantize`; or the planned columns are not c in all.
    """
    planned = sum(book.columns for book in plan)
    if values.ndim != 2 or planned != values.shape[1] or any(b.columns < 1 for b in plan):
        raise UsageError(
            f"sub-vectors of {[b.columns for b in plan]} columns do not make up values of shape "
            f"{values.shape}"
        )
    found, begin = [], 0
    for number, book in enumerate(plan):
        part = np.ascontiguousarray(values[:, begin : begin + book.columns])
        found.append(quantize(part, book.codes, weights=weights, seed=seed + number, rounds=rounds))
        begin += book.columns
    return found


def codes_within(codes: int, count: int, columns: int, bytes_a_vector: float) -> int:
    """As many codes as asked, or as few as keep the codebook under so many bytes a vector.

    A codebook of 2^13 codes pays for 100,000 splats and is larger than 5,000 of them.
    """
    affordable = min(count * bytes_a_vector / (2 * columns), float(MOST_CODES))
    return max(1, min(codes, max(int(affordable), 16)))


def nearest(vectors: Floats, book: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Of each vector [n, d]: the index of the nearest code of [k, d], and the squared distance.

    The lowest index of several that are equally near.
    """
    if book.shape[1] == 1:
        indices = _nearest_value(vectors[:, 0], book[:, 0])
    else:
        # Distances come from products, which would cancel far from the origin.
        middle = book.mean(axis=0)
        indices = _nearest_row(vectors - middle, book - middle)
    difference = vectors - book[indices]
    squares: Floats = np.einsum("nd,nd->n", difference, difference)
    return indices, squares


def _nearest_value(values: Floats, book: Floats) -> NDArray[np.intp]:
    ascending, first = np.unique(book, return_index=True)
    borders = (ascending[1:] + ascending[:-1]) / 2
    found: NDArray[np.intp] = first[np.searchsorted(borders, values)]
    return found


def _nearest_row(vectors: Floats, book: Floats) -> NDArray[np.intp]:
    n, k = len(vectors), len(book)
    indices = np.zeros(n, np.intp)
    half = 0.5 * np.einsum("kd,kd->k", book, book)  # argmin |x - c|^2 = argmin |c|^2 / 2 - x c
    step = max(1, min(n, ROOM // max(k, 1)))
    room = np.empty((step, k), np.float32)
    columns = np.ascontiguousarray(book.T)
    for begin in range(0, n, step):
        block = vectors[begin : begin + step]
        scores = np.matmul(block, columns, out=room[: len(block)])
        np.subtract(half, scores, out=scores)
        indices[begin : begin + step] = scores.argmin(axis=1)
    return indices


# ---------------------------------------------------------------- one column


def _lloyd(x: Floats, weights: NDArray[np.float64], codes: int, rounds: int) -> Floats:
    """Centres [codes], ascending."""
    order = np.argsort(x, kind="stable")
    values, w = x[order].astype(np.float64), weights[order]
    mass = np.concatenate([[0.0], np.cumsum(w)])
    moment = np.concatenate([[0.0], np.cumsum(w * values)])
    centres = _spread(values, mass, codes)
    for _ in range(4 * rounds):  # a round costs no more than a look-up of the borders
        borders = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        bounds = np.concatenate([[0], borders, [len(values)]])
        total, sums = np.diff(mass[bounds]), np.diff(moment[bounds])
        centres = np.where(total > 0, sums / np.where(total > 0, total, 1), centres)
        centres.sort()
    return centres.astype(np.float32)


def _spread(
    values: NDArray[np.float64], mass: NDArray[np.float64], codes: int
) -> NDArray[np.float64]:
    """A start [codes]: as dense as the cube root of the values' density, which is best for many.

    Between quantiles of equal mass the density is 1 / gap, so an interval of this length gets
    codes in proportion to gap^(2/3) (Panter and Dite 1951).
    """
    # A twentieth of the quantiles lie evenly: most values may be the same one.
    even = (values - values[0]) / (values[-1] - values[0])
    climb = mass[1:] / mass[-1] + 0.05 * even
    levels = np.linspace(0, climb[-1], max(QUANTILES, 4 * codes) + 1)
    quantiles = values[np.clip(np.searchsorted(climb, levels), 0, len(values) - 1)]
    share = np.concatenate([[0.0], np.cumsum(np.diff(quantiles) ** (2 / 3))])
    wanted = (np.arange(codes) + 0.5) / codes * share[-1]
    return np.asarray(np.interp(wanted, share, quantiles), np.float64)


# ---------------------------------------------------------------- several columns


def _k_means(
    x: Floats,
    weights: NDArray[np.float64],
    codes: int,
    rounds: int,
    rng: np.random.Generator,
) -> Floats:
    """Centres [codes, d]."""
    middle: Floats = np.average(x, axis=0, weights=weights).astype(np.float32)
    x = x - middle  # distances come from products: far from the origin they would cancel
    n = len(x)
    size = min(n, max(PER_CODE * codes, LEAST_BATCH))
    batch = _batch(n, size, rng)
    centres = _start(x[batch], weights[batch], codes, rng)
    sums, total = np.zeros(centres.shape), np.zeros(len(centres))
    for turn in range(rounds):
        if turn and size < n:
            batch = _batch(n, size, rng)
        indices, squares = nearest(x[batch], centres)
        new_sums, new_total = _totals(x[batch], weights[batch], indices, len(centres))
        kept = KEPT if size < n else 0.0
        sums, total = kept * sums + new_sums, kept * total + new_total
        used = total > 0
        centres[used] = (sums[used] / total[used, None]).astype(np.float32)
        if turn + 1 < rounds:
            _refill(centres, sums, total, x[batch], squares * weights[batch])
    return centres + middle


def _batch(n: int, size: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Indices of a mini-batch, ascending; all of them where it is as large."""
    if size == n:
        return np.arange(n)
    return np.sort(rng.permutation(n)[:size])


def _start(x: Floats, weights: NDArray[np.float64], codes: int, rng: np.random.Generator) -> Floats:
    """Centres [codes, d] among the vectors: in 8 rounds, likelier the farther from those taken.

    Drawing without replacement by Gumbel noise: the largest log(weight) + noise are taken.
    """
    chosen = np.zeros(0, np.intp)
    far = np.full(len(x), np.inf)
    codes = min(codes, len(x))
    while len(chosen) < codes:
        few = min(max(codes // 8, 1), codes - len(chosen))
        chance = weights if not len(chosen) else weights * far
        with np.errstate(divide="ignore"):
            keys = np.log(chance) + rng.gumbel(size=len(x))
        keys[chosen] = -np.inf
        new = np.argpartition(-keys, few - 1)[:few]
        new.sort()
        chosen = np.concatenate([chosen, new])
        _, squares = nearest(x, x[new])
        far = np.minimum(far, squares)
    return x[chosen].copy()


def _refill(
    centres: Floats,
    sums: NDArray[np.float64],
    total: NDArray[np.float64],
    x: Floats,
    errors: NDArray[np.float64],
) -> None:
    """Centres that nothing is near go where the error is largest."""
    empty = np.flatnonzero(total <= 0)[: len(x)]
    if len(empty):
        worst = np.argsort(-errors, kind="stable")[: len(empty)]
        centres[empty] = x[worst]
        sums[empty], total[empty] = 0.0, 0.0


def _totals(
    x: Floats, weights: NDArray[np.float64], indices: NDArray[np.intp], codes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each code: the weighted sum [codes, d] and the weight [codes] of what is nearest to it."""
    total = np.bincount(indices, weights, minlength=codes).astype(np.float64)
    sums = np.empty((codes, x.shape[1]))
    for column in range(x.shape[1]):
        sums[:, column] = np.bincount(indices, weights * x[:, column], minlength=codes)
    return sums, total


# ---------------------------------------------------------------- both


def _checked(
    vectors: Floats, codes: int, weights: NDArray[np.floating] | None
) -> tuple[Floats, NDArray[np.float64]]:
    x = np.ascontiguousarray(vectors, np.float32)
    if x.ndim != 2 or x.shape[1] < 1:
        raise UsageError(f"vectors have shape {x.shape}; expected [n, d] with d of 1 or more")
    if not 1 <= codes <= MOST_CODES:
        raise UsageError(f"{codes} codes; expected 1 to {MOST_CODES}")
    if not (np.abs(x) <= F16_MAX).all():
        row = int(np.argmax(~(np.abs(x) <= F16_MAX).all(axis=1)))
        raise UsageError(
            f"vector {row} has a value that is not finite or over {F16_MAX:g}, which a float16 "
            "codebook does not hold; check the model's scale"
        )
    if weights is None:
        return x, np.ones(len(x))
    w = np.asarray(weights, np.float64)
    if w.shape != (len(x),) or not np.isfinite(w).all() or (w < 0).any():
        raise UsageError(
            f"weights have shape {w.shape}; expected ({len(x)},) finite numbers of 0 or more"
        )
    mean = float(w.mean()) if len(w) else 0.0
    return x, w / mean + FLOOR if mean > 0 else np.ones(len(x))


def _distinct(
    rows: NDArray[np.float16], most: int
) -> tuple[NDArray[np.float16], NDArray[np.intp]] | None:
    """(the distinct rows, which of them each row is), where there are at most so many."""
    bits = (rows + np.float16(0)).view(np.uint16)  # -0 becomes 0; halves would sort slowly
    few = bits[:: max(1, len(bits) // (2 * most))]
    for part in (few, bits):
        order = np.lexsort(part.T)
        ordered = part[order]
        new = np.ones(len(ordered), np.bool_)
        new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        if new.sum() > most:
            return None
    which = np.zeros(len(rows), np.intp)
    which[order] = np.cumsum(new) - 1
    return np.ascontiguousarray(ordered[new]).view(np.float16), which


def _ordered(book: NDArray[np.float16], indices: NDArray[np.intp]) -> Quantized:
    """Without the codes that are not used, in the order that `Quantized` promises."""
    counts = np.bincount(indices, minlength=len(book))
    if book.shape[1] == 1:
        order = np.argsort(book[:, 0], kind="stable")
    else:
        order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    place = np.zeros(len(book), np.uint16)
    place[order] = np.arange(len(order), dtype=np.uint16)
    return Quantized(np.ascontiguousarray(book[order]), place[indices])
