"""Weights to few bits, each rounding error made good by the weights that are not rounded yet.

Of one output channel y = w . x, rounding w to q changes y by (w - q) . x. With the second moments
H = E[x x^T] of its inputs the mean square of that is (w - q) H (w - q)^T. Columns are rounded one
after another, and each error is spread over the columns that follow, which are correlated with it.
GPTQ: Frantar et al., arXiv 2210.17323; the errors' weights come from the Cholesky factor of H^-1.

Without H every weight is rounded to the nearest level, which is best for white inputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError

BLOCK = 64  # columns between two updates of all that follow
DAMPING = 0.01  # of the mean second moment, added to each: H is estimated from few samples
BITS = (4, 8)


def quantize_rows(
    rows: NDArray[np.float32],
    bits: int,
    moments: NDArray[np.float64] | None = None,
    *,
    keep_largest: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Symmetric levels of each row, value = scale * level.

    Args:
        rows: (channels, columns).
        bits: 4: levels -7 to 7; 8: -127 to 127.
        moments: second moments of the inputs, (columns, columns) for all channels, or
            (channels, columns, columns); None: round to nearest.
        keep_largest: the largest weight of a row gets the highest level, come what may: then
            whoever rounds the values again, with scales of the largest magnitude, finds the same
            levels.

    Returns:
        Scales (channels,), of the largest magnitude of each row, and levels as `rows`.

    Raises:
        UsageError: bits, a shape, or a value that is not finite.
    """
    if bits not in BITS:
        raise UsageError(f"{bits} bits; expected one of {', '.join(map(str, BITS))}")
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise UsageError(f"weights of shape {rows.shape} must be rows of finite numbers")
    top = 2 ** (bits - 1) - 1
    largest = np.abs(rows).max(axis=1, initial=0.0)
    # Channels of zeros, and of numbers whose scale float32 cannot hold, become zeros.
    scales = np.maximum(largest / np.float32(top), np.finfo(np.float32).tiny).astype(np.float32)
    if moments is None or rows.shape[1] == 0:
        levels = np.clip(np.rint(rows / scales[:, None]), -top, top)
        return scales, levels.astype(np.int8)
    if moments.shape[-2:] != (rows.shape[1],) * 2 or moments.shape[:-2] not in ((), (len(rows),)):
        raise UsageError(f"second moments of shape {moments.shape} are not of {rows.shape} weights")
    return scales, _with_feedback(rows.astype(np.float64), scales, top, moments, keep_largest)


def _with_feedback(
    rows: NDArray[np.float64],
    scales: NDArray[np.float32],
    top: int,
    moments: NDArray[np.float64],
    keep_largest: bool,
) -> NDArray[np.int8]:
    upper = _feedback(moments)  # (columns, columns) or (channels, columns, columns)
    scale = scales.astype(np.float64)
    levels = np.zeros(rows.shape, np.int8)
    columns = rows.shape[1]
    largest = np.abs(rows).argmax(axis=1)
    highest = np.sign(rows[np.arange(len(rows)), largest]) * top
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = np.zeros((len(rows), stop - start))
        for column in range(start, stop):
            level = np.clip(np.rint(rows[:, column] / scale), -top, top)
            if keep_largest:
                level = np.where(largest == column, highest, level)
            levels[:, column] = level
            error = (rows[:, column] - level * scale) / upper[..., column, column]
            rows[:, column:stop] -= error[:, None] * upper[..., column, column:stop]
            errors[:, column - start] = error
        if moments.ndim == 2:
            rows[:, stop:] -= errors @ upper[start:stop, stop:]
        else:
            rows[:, stop:] -= np.einsum("ri,rij->rj", errors, upper[:, start:stop, stop:])
    return levels


def _feedback(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper Cholesky factor of the inverse of the damped moments."""
    damped = moments.copy()
    diagonal = np.einsum("...ii->...i", damped)
    mean = diagonal.mean(axis=-1, keepdims=True)
    diagonal += np.where(mean > 0, DAMPING * mean, 1.0)  # inputs that are always 0: any will do
    factor = np.linalg.cholesky(np.linalg.inv(damped))
    return np.swapaxes(factor, -1, -2)
