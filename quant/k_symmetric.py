"""Sub-blocks of 16 with a scale alone: Q6_K.

A value is decoded as d * scale * quant, where d is a super-block's float16, scale a sub-block's
int8 and quant an element's six bits, -32 to 31 (dequantize_row_q6_K in ggml/src/ggml-quants.c of
llama.cpp). Scales may be negative: so the extreme value can be -32 quants, whatever its sign.
What is sought are the numbers with the least weighted squared error of the decoded values:

1. Each sub-block by itself: some scales near the one that makes the extreme value the outermost
   quant. For each, a weighted least-squares fit to the quants gives the best scale and its error.
2. Each super-block: the d whose multiples are nearest to these scales, by what a difference costs.
3. Each sub-block given d: the scale and its neighbours, by the error itself. Then d is fitted
   to all quants of the super-block, and this step is repeated. The best is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.quant.k_scales import common_step, reciprocal
from penstock.quant.super_blocks import Batch, Floats, extremes

SUB_BLOCKS = 16
LOWEST_QUANT, HIGHEST_QUANT = -32, 31
LOWEST_SCALE, HIGHEST_SCALE = -128, 127
# Quants that the extreme value is to be: a negative one turns the signs of all. Up to half a
# quant beyond the range nothing is lost.
EXTREMES = [-32.4, -32.0, -31.5, -31.0, -30.5, -30.0, -33.0, -34.0, 31.4, 31.0, 30.5, 30.0, 32.0]
# With weights, the extreme value may matter little: extremes in weighted standard deviations.
WIDTHS = [1.5, 2.5, 3.5]
LEAST_WIDTH = 1e-4  # of the extreme value
FITS = 1  # of the best
ROUNDS = 2
DIVISORS = -np.arange(100, 129, dtype=np.float32)
# What to add to a scale: of a scale near 100, three more make the same value with 31 quants as
# with 32, which helps where values are close together.
NEIGHBOURS = (0, -1, 1, -2, 2, -3, 3, -4, 4)


@dataclass
class Parts:
    """A solution: what a super-block's bytes are made of, as whole float32 numbers."""

    d: Floats  # (super-blocks,)
    scales: Floats  # (sub-blocks,)


class SymmetricSearch:
    """The search in one batch, with its temporary arrays."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._t, self._q, self._w = (np.empty_like(batch.values) for _ in range(3))

    def run(self) -> tuple[Parts, Floats]:
        """The best parts, and the quants (16, sub-blocks), -32 to 31."""
        batch = self.batch
        scale, squares = self._fit_scales()
        parts = Parts(*common_step(batch, scale, squares, DIVISORS, (LOWEST_SCALE, HIGHEST_SCALE)))
        best = parts
        least = np.full(len(batch.units), np.inf, np.float32)
        for turn in range(ROUNDS):
            error = batch.by_super_block(self._improve(parts)).sum(0)
            if turn == 0:
                best, least = parts, error
            else:
                better = error < least
                np.copyto(best.d, parts.d, where=better)
                np.copyto(best.scales, parts.scales, where=batch.spread(better))
                least = np.minimum(least, error)
            if turn < ROUNDS - 1:
                parts = self._refit(best)
        self._round(best.scales * batch.spread(best.d))
        return best, self._q

    def _fit_scales(self) -> tuple[Floats, Floats]:
        """The best scales, 0 where all is zero, and the weighted sums of their squared quants."""
        batch = self.batch
        extreme = extremes(batch.values)
        trials = [extreme / np.float32(quant) for quant in EXTREMES]
        if batch.weights is not None:
            heavy = batch.weighted(batch.values, self._w)
            deviation = np.sqrt(batch.total(heavy, batch.values) / batch.weight_sums)
            width = np.maximum(deviation, np.abs(extreme) * np.float32(LEAST_WIDTH))
            width = np.copysign(width, extreme)
            trials += [width * np.float32(of / LOWEST_QUANT) for of in WIDTHS]
        best = np.zeros_like(extreme)
        least = np.full_like(extreme, np.inf)
        for trial in trials:
            scale, error, _ = self._fit(trial)
            better = error < least
            np.copyto(best, scale, where=better)
            np.copyto(least, error, where=better)
        for _ in range(FITS):
            scale, error, squares = self._fit(best)
            np.copyto(best, scale, where=error < least)
        best[squares <= 0] = 0
        return best, squares

    def _fit(self, scale: Floats) -> tuple[Floats, Floats, Floats]:
        """Scales fitted to the quants of `scale`, their errors, and the sums of squared quants.

        With the quants q of values at places t, and e = q - t, the fit seeks the a for which
        (1 + a) * q is closest to t.
        """
        batch = self.batch
        t, q = self._t, self._q
        np.multiply(batch.values, reciprocal(scale), out=t)
        np.rint(t, out=q)
        np.clip(q, LOWEST_QUANT, HIGHEST_QUANT, out=q)
        e = np.subtract(q, t, out=t)
        heavy = batch.weighted(e, self._w)
        ee, qe = batch.total(heavy, e), batch.total(heavy, q)
        qq = batch.total(batch.weighted(q, self._w), q)
        a = -qe * reciprocal(qq)
        error = np.maximum(ee + a * qe, 0) * scale * scale
        return scale * (1 + a), error, qq

    def _round(self, scale: Floats) -> Floats:
        """Set the quants for given scales; returns decoded minus true values."""
        t, q = self._t, self._q
        np.multiply(self.batch.values, reciprocal(scale), out=q)
        np.rint(q, out=q)
        np.clip(q, LOWEST_QUANT, HIGHEST_QUANT, out=q)
        decoded = np.multiply(q, scale, out=t)
        return np.subtract(decoded, self.batch.values, out=t)

    def _improve(self, parts: Parts) -> Floats:
        """Move the scales of `parts` to better neighbours; returns the errors."""
        batch = self.batch
        d, scales = batch.spread(parts.d), parts.scales
        best, least = scales.copy(), np.full_like(scales, np.inf)
        for offset in NEIGHBOURS:
            trial = np.clip(scales + np.float32(offset), LOWEST_SCALE, HIGHEST_SCALE)
            r = self._round(trial * d)
            error = batch.total(batch.weighted(r, self._w), r)
            better = error < least
            np.copyto(least, error, where=better)
            np.copyto(best, trial, where=better)
        parts.scales = best
        return least

    def _refit(self, parts: Parts) -> Parts:
        """Parts with a d that is fitted to the quants."""
        batch = self.batch
        r, q = self._round(parts.scales * batch.spread(parts.d)), self._q
        s = parts.scales
        heavy = batch.weighted(q, self._w)
        rq, qq = batch.total(heavy, r), batch.total(heavy, q)
        rs = batch.by_super_block(s * rq).sum(0)
        ss = batch.by_super_block(s * s * qq).sum(0)
        return Parts(batch.to_half(parts.d - rs * reciprocal(ss)), s)
