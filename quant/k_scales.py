"""Scales of sub-blocks as whole multiples of a super-block's float16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.quant.super_blocks import Batch, Floats, extremes


def reciprocal(steps: Floats) -> Floats:
    """One over each step, and 0 for 0."""
    return np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps != 0)


def whole(wanted: Floats, steps: Floats, lowest: int, highest: int) -> Floats:
    """The nearest whole multiples of `steps`, within the range."""
    multiples: Floats = np.clip(np.rint(wanted * reciprocal(steps)), lowest, highest)
    return multiples


@dataclass(frozen=True)
class Limits:
    """What falling short of a scale costs besides, for each sub-block.

    Attributes:
        slack: by how much less than wanted costs nothing.
        costs: of the square of what is short beyond that.
    """

    slack: Floats
    costs: Floats


def common_step(
    batch: Batch,
    wanted: Floats,
    costs: Floats,
    divisors: Floats,
    bounds: tuple[int, int],
    limits: Limits | None = None,
) -> tuple[Floats, Floats]:
    """A step for each super-block, and each sub-block's multiple of it.

    The step is the largest magnitude over one of `divisors`, rounded to float16: the one for
    which the sum of the costs times the squared differences is least.

    Args:
        batch: the super-blocks.
        wanted: what the multiples are to come close to, (sub-blocks,).
        costs: of a squared difference, (sub-blocks,).
        divisors: to try.
        bounds: the least and the greatest multiple.
        limits: of multiples that come out below what is wanted.

    Returns:
        The steps (super-blocks,) and multiples (sub-blocks,).
    """
    wanted, costs = batch.by_super_block(wanted), batch.by_super_block(costs)
    steps = batch.to_half(extremes(wanted) / divisors[:, None])  # (divisors, super-blocks)
    multiples = whole(wanted, steps[:, None], *bounds)  # (divisors, sub-blocks, super-blocks)
    difference = multiples * steps[:, None] - wanted
    errors = costs * difference * difference
    if limits is not None:
        slack, costs = batch.by_super_block(limits.slack), batch.by_super_block(limits.costs)
        short = np.maximum(-difference - slack, 0)
        errors += costs * short * short
    best = errors.sum(1).argmin(0)
    each = np.arange(len(best))
    return steps[best, each], np.ascontiguousarray(multiples[best, :, each].T).reshape(-1)
