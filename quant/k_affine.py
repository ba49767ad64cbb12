"""Sub-blocks of 32 with a scale and a minimum: Q4_K and Q5_K.

A value is decoded as d * scale * quant - dmin * minimum, where d and dmin are a super-block's
float16, scale and minimum a sub-block's six bits and quant an element's four or five
(dequantize_row_q4_K in ggml/src/ggml-quants.c of llama.cpp). What is sought are the numbers with
the least weighted squared error of the decoded values:

1. Each sub-block by itself: grids of several widths from its least value up. For each, values are
   rounded to the grid, and a weighted least-squares fit to the quants found gives the best scale,
   minimum and error. The best few are fitted again.
2. Each super-block: the d, then the dmin, whose multiples are nearest to these scales and
   minimums, each by what a difference costs.
3. Each sub-block given d and dmin: the scale and the minimum and neighbours of them, by the error
   itself; always tried is a minimum of 0, which suits many values near 0 beside an outlier. Then
   d and dmin are fitted to all quants of the super-block, and this step is repeated. The best is
   kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.quant.k_scales import Limits, common_step, reciprocal, whole
from penstock.quant.super_blocks import Batch, Floats

SUB_BLOCKS = 8
HIGHEST = 63  # of scales and minimums
# By how many steps a grid from the least value up is longer than the values reach.
STRETCHES = np.linspace(-3, 1.5, 19, dtype=np.float32)
# Of such grids that are shifted to have a step at 0: beside an outlier, most values are near it.
CENTRED = np.array([-2, -1, -0.5, 0, 0.5, 1], np.float32)
# With weights, the outermost values may matter little: half-widths of grids around the weighted
# mean, in weighted standard deviations.
WIDTHS = np.array([1.0, 1.7, 2.5], np.float32)
LEAST_WIDTH = 1e-4  # of the values' whole width
BEST_GRIDS = 5  # are fitted again,
FITS = 1  # so often
ROUNDS = 2
DIVISORS = np.arange(44, 66, dtype=np.float32)
# What to add to a scale and to its minimum.
NEIGHBOURS = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (0, -HIGHEST)]
CUT = (1, 2)  # how many of a super-block's largest scales its step may not reach
CUT_GAIN = 0.8  # what matters little is not to suffer for a trifle
HALVES = 3  # float16 numbers to either side of a fitted d


@dataclass
class Fit:
    """Grids fitted to quants, and sums over each sub-block: (grids, sub-blocks) each."""

    scale: Floats
    offset: Floats  # added to the raised values before they are divided by the scale
    error: Floats  # weighted and squared; negative, as a constant is left out
    quants: Floats  # weighted sum of the quants
    squares: Floats  # weighted sum of their squares


@dataclass
class Parts:
    """A solution: what a super-block's bytes are made of, as whole float32 numbers."""

    d: Floats  # (super-blocks,)
    dmin: Floats  # (super-blocks,)
    scales: Floats  # (sub-blocks,)
    minimums: Floats  # (sub-blocks,)

    def copy_better(self, other: Parts, better: np.ndarray, sub_blocks: int) -> None:
        """Take over the super-blocks of `other` that are better."""
        for mine, its in ((self.d, other.d), (self.dmin, other.dmin)):
            np.copyto(mine, its, where=better)
        spread = np.tile(better, sub_blocks)
        for mine, its in ((self.scales, other.scales), (self.minimums, other.minimums)):
            np.copyto(mine, its, where=spread)


class AffineSearch:
    """The search in one batch, with its temporary arrays."""

    def __init__(self, batch: Batch, levels: int) -> None:
        """Quants are 0 to `levels`."""
        self.batch = batch
        self.levels = levels
        # Values from the least of their sub-block, or from 0 where that is less, so that sums
        # over values far from zero and close together stay exact enough in float32.
        self._low = np.minimum(batch.values.min(0), 0)
        self._raised = np.subtract(batch.values, self._low, out=batch.values)
        self._t, self._q, self._w = (np.empty_like(batch.values) for _ in range(3))
        self._sums = batch.total(batch.weighted(self._raised, self._w))

    def run(self) -> tuple[Parts, Floats]:
        """The best parts, and the quants (32, sub-blocks)."""
        batch = self.batch
        fit = self._fit_grids()
        parts, mean_quants = self._whole_parts(fit)
        best: Parts | None = None
        least = np.full(len(batch.units), np.inf, np.float32)
        for turn in range(ROUNDS):
            error = batch.by_super_block(self._improve(parts, mean_quants)).sum(0)
            if best is None:
                best, least = parts, error
            else:
                best.copy_better(parts, error < least, SUB_BLOCKS)
                least = np.minimum(least, error)
            if turn < ROUNDS - 1:
                parts, mean_quants = self._refit(best)
        assert best is not None
        scale, minimum = self._products(best)
        self._round(scale, minimum)
        return best, self._q

    def _fit_grids(self) -> Fit:
        batch = self.batch
        # Where all values are equal, the minimum alone will do, with any scale and quants of 0.
        span = self._raised.max(0)
        span[span <= 0] = 1
        scales = span / (self.levels + STRETCHES)[:, None]
        offsets = np.zeros_like(scales)
        centred = span / (self.levels + CENTRED)[:, None]
        shift = np.rint(-self._low / centred) * centred + self._low
        scales, offsets = np.concatenate([scales, centred]), np.concatenate([offsets, shift])
        if batch.weights is not None:
            more = self._grids_by_weight(span)
            scales = np.concatenate([scales, more[0]])
            offsets = np.concatenate([offsets, more[1]])
        fit = self._fit(scales, offsets)
        best = np.argpartition(fit.error, BEST_GRIDS, axis=0)[:BEST_GRIDS]
        scale, offset = (np.take_along_axis(a, best, 0) for a in (fit.scale, fit.offset))
        for _ in range(FITS):
            fit = self._fit(scale, offset)
            scale, offset = fit.scale, fit.offset
        best = fit.error.argmin(0)[None]
        return Fit(
            *(
                np.take_along_axis(a, best, 0)[0]
                for a in (scale, offset, fit.error, fit.quants, fit.squares)
            )
        )

    def _grids_by_weight(self, span: Floats) -> tuple[Floats, Floats]:
        """Scales and offsets (grids, sub-blocks) around the weighted means."""
        batch, raised = self.batch, self._raised
        share = 1 / batch.weight_sums
        mean = batch.total(batch.weighted(raised, self._w)) * share
        away = np.subtract(raised, mean, out=self._q)
        deviation = np.sqrt(batch.total(batch.weighted(away, self._w), away) * share)
        half = WIDTHS[:, None] * deviation
        start = np.maximum(mean - half, 0)
        width = np.minimum(mean + half, span) - start
        scales = np.maximum(width, span * np.float32(LEAST_WIDTH)) / np.float32(self.levels)
        return scales, -start

    def _fit(self, scales: Floats, offsets: Floats) -> Fit:
        """Round the values to grids (grids, sub-blocks), then fit these to the quants.

        The fit seeks the scale s and offset c with the least sum of w * (s * q - c - v)^2 over
        the quants q and raised values v. Errors are without the sum of w * v^2, which is the
        same for all grids.
        """
        batch, q, v = self.batch, self._q, self._raised
        q1, qq, qv = (np.empty_like(scales) for _ in range(3))
        factors = reciprocal(scales)
        for i, factor in enumerate(factors):
            np.multiply(v, factor, out=q)
            if offsets[i].any():
                np.add(q, offsets[i] * factor, out=q)
            np.rint(q, out=q)
            np.clip(q, 0, self.levels, out=q)
            heavy = batch.weighted(q, self._w)
            q1[i], qq[i], qv[i] = batch.total(heavy), batch.total(heavy, q), batch.total(heavy, v)
        w1, v1, low = batch.weight_sums, self._sums, self._low
        determinant = qq * w1 - q1 * q1
        flat = determinant <= 1e-6 * qq * w1  # all quants are equal
        s = np.where(flat, scales, (qv * w1 - q1 * v1) / np.where(flat, 1, determinant))
        c = (s * q1 - v1) / w1
        # A minimum cannot be below 0: it is fixed there, and the scale fitted alone. What is above
        # by less than a rounding error is not worth a minimum either.
        fixed = c - low < s * np.float32(2.0**-12)
        c = np.where(fixed, low, c)
        s = np.where(fixed & (qq > 0), (qv + low * q1) * reciprocal(qq), s)
        s = np.maximum(s, np.float32(0.1) * scales)
        error = s * (s * qq - 2 * qv - 2 * c * q1) + c * (2 * v1 + c * w1)
        return Fit(s, c, error, q1, qq)

    def _whole_parts(self, fit: Fit) -> tuple[Parts, Floats]:
        """Parts near a fit, and the mean quant of each sub-block."""
        batch = self.batch
        mean_quants = fit.quants / batch.weight_sums
        scale = np.where(fit.squares > 0, fit.scale, 0).astype(np.float32)
        least = fit.offset - self._low
        # What a change of the scale costs where the minimum follows it, as far as it is not held
        # at 0.
        costs = np.maximum(fit.squares - fit.quants * mean_quants, 0)
        slack = np.where(mean_quants > 0, least * reciprocal(mean_quants), np.float32(np.inf))
        held = batch.weight_sums * mean_quants * mean_quants
        limits = Limits(np.maximum(slack, 0).astype(np.float32), held)

        def parts(d: Floats, scales: Floats) -> Parts:
            wanted = np.maximum(least + mean_quants * (scales * batch.spread(d) - scale), 0)
            dmin, minimums = common_step(batch, wanted, batch.weight_sums, DIVISORS, (0, HIGHEST))
            return Parts(d, dmin, scales, minimums)

        best = parts(*common_step(batch, scale, costs, DIVISORS, (0, HIGHEST), limits))
        if batch.weights is not None:
            self._cut_largest(best, scale, mean_quants, parts)
        return best, mean_quants

    def _cut_largest(
        self,
        best: Parts,
        scale: Floats,
        mean_quants: Floats,
        parts: Callable[[Floats, Floats], Parts],
    ) -> None:
        """Take over parts that spare the others one sub-block's large scale, where that is better.

        With weights, a sub-block that is wide for a value that matters little would take the
        precision of all scales.
        """
        batch = self.batch
        least = self._improve(best, mean_quants, NEIGHBOURS[:1])
        least = batch.by_super_block(least).sum(0)
        ordered = np.sort(batch.by_super_block(scale), axis=0)
        for place in CUT:
            d = batch.to_half(ordered[-1 - place] / HIGHEST)
            cut = parts(d, whole(scale, batch.spread(d), 0, HIGHEST))
            error = batch.by_super_block(self._improve(cut, mean_quants, NEIGHBOURS[:1])).sum(0)
            better = error < np.float32(CUT_GAIN) * least
            best.copy_better(cut, better, SUB_BLOCKS)
            least = np.where(better, error, least)

    def _products(self, parts: Parts) -> tuple[Floats, Floats]:
        spread = self.batch.spread
        return parts.scales * spread(parts.d), parts.minimums * spread(parts.dmin)

    def _round(self, scale: Floats, minimum: Floats) -> Floats:
        """Set the quants for given scales and minimums; returns decoded minus true values."""
        t, q = self._t, self._q
        above = np.add(self._raised, self._low + minimum, out=t)
        np.multiply(above, reciprocal(scale), out=q)
        np.rint(q, out=q)
        np.clip(q, 0, self.levels, out=q)
        decoded = np.multiply(q, scale, out=self._w)
        difference: Floats = np.subtract(decoded, above, out=t)
        return difference

    def _improve(
        self,
        parts: Parts,
        mean_quants: Floats,
        neighbours: Sequence[tuple[int, int]] = tuple(NEIGHBOURS),
    ) -> Floats:
        """Move scales and minimums of `parts` to better neighbours; returns the errors."""
        batch = self.batch
        d, dmin = batch.spread(parts.d), batch.spread(parts.dmin)
        w1 = batch.weight_sums
        scales, minimums = parts.scales, parts.minimums
        least = np.full_like(scales, np.inf)
        best_scales, best_minimums = scales.copy(), minimums.copy()
        for more, deeper in neighbours:
            trial = np.clip(scales + np.float32(more), 0, HIGHEST)
            suited = minimums * dmin + mean_quants * ((trial - scales) * d)
            minimum = whole(suited, dmin, 0, HIGHEST) + np.float32(deeper)
            minimum = np.clip(minimum, 0, HIGHEST) * dmin
            r = self._round(trial * d, minimum)
            heavy = batch.weighted(r, self._w)
            r1, rr = batch.total(heavy), batch.total(heavy, r)
            # The minimum that suits these quants, and the error with it.
            suited = whole(minimum + r1 / w1, dmin, 0, HIGHEST)
            change = suited * dmin - minimum
            error = np.maximum(rr + change * (change * w1 - 2 * r1), 0)
            better = error < least
            np.copyto(least, error, where=better)
            np.copyto(best_scales, trial, where=better)
            np.copyto(best_minimums, suited, where=better)
        parts.scales, parts.minimums = best_scales, best_minimums
        return least

    def _refit(self, parts: Parts) -> tuple[Parts, Floats]:
        """New d and dmin, fitted to the quants, and the mean quant of each sub-block."""
        batch = self.batch
        r, q = self._round(*self._products(parts)), self._q
        heavy = batch.weighted(r, self._w)
        r1, rq = batch.total(heavy), batch.total(heavy, q)
        heavy = batch.weighted(q, self._w)
        q1, qq = batch.total(heavy), batch.total(heavy, q)
        w1 = batch.weight_sums

        def total(of_sub_blocks: Floats) -> Floats:
            sums: Floats = batch.by_super_block(of_sub_blocks).sum(0)
            return sums

        s, m = parts.scales, parts.minimums
        ss, sm, mm = total(s * s * qq), total(s * m * q1), total(m * m * w1)
        rs, rm = total(s * rq), total(m * r1)
        determinant = ss * mm - sm * sm
        usable = determinant > 1e-6 * ss * mm
        safe = np.where(usable, determinant, 1)
        change = np.where(usable, (sm * rm - rs * mm) / safe, -rs * reciprocal(ss))
        # Of each float16 near the best d, with the dmin that suits it, the least error: what one
        # rounding does the other can undo.
        near = batch.halves_near(np.maximum(parts.d + change, 0), HALVES)
        change = near - parts.d
        suited = np.maximum(parts.dmin + (rm + change * sm) * reciprocal(mm), 0)
        suited = batch.to_half(suited)
        change_m = suited - parts.dmin
        error = change * (2 * rs + change * ss - 2 * change_m * sm)
        error += change_m * (change_m * mm - 2 * rm)
        best = error.argmin(0)[None]
        d, dmin = (np.take_along_axis(a, best, 0)[0] for a in (near, suited))
        return Parts(d, dmin, s, m), q1 / w1
