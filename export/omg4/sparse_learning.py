"""Which channels' models, once they have settled, learn from every fourth number only.

That is decoded in less time. What it costs is counted on the whole file: of a sample it would not
be seen where the first group, which all others go on from, is unlike them. The digits kept and the
positions are few numbers of many: their models learn from all.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.export.omg4.psplat_plan import Plan, PlannedGroup
from penstock.quant.entropy import DIRECT, NARROW, coding_rows

MOST = 1.002
"""Times the bits that a channel may take for it."""

Group = tuple[NDArray[np.uint32], NDArray[np.uint8], list[NDArray[np.uint16]]]


def with_sparse_learning(plan: Plan) -> tuple[Plan, list[float]]:
    """(the plan with `ChannelCoding.sparse` where that costs next to nothing, its `plan_bits`)."""
    before = plan_bits(plan)
    sparse = tuple(
        replace(channel, coding=replace(channel.coding, sparse=1))
        if channel.coding.mode in (DIRECT, NARROW)
        else channel
        for channel in plan.channels
    )
    if sparse == plan.channels:
        return plan, before
    after = plan_bits(replace(plan, channels=sparse))
    channels, bits = list(plan.channels), list(before)
    for k, (old, new) in enumerate(zip(before[1:], after[1:], strict=True)):
        if new != old and new <= MOST * old:  # the same: no model settles
            channels[k], bits[k + 1] = sparse[k], new
    return replace(plan, channels=tuple(channels)), bits


def plan_bits(plan: Plan) -> list[float]:
    """What the positions take in all, then each channel."""
    coder, found = coder_of(plan), np.zeros(1 + len(plan.channels))
    for number, group in enumerate(plan.groups):
        numbers = numbers_of(plan, group)
        found += coder.bits(*numbers, plan.primed and number > 0)
        if plan.primed and number == 0:
            coder.encode(*numbers, False, True)
    return [float(bits) for bits in found]


def coder_of(plan: Plan) -> _native.SplatCoder:
    """What codes the plan's groups."""
    bits = plan.splats.lattice.bits
    return _native.SplatCoder(
        bits,
        plan.modelled_digits,
        plan.slowest,
        None if plan.digits is None else plan.digits.row(bits),
        coding_rows([(c.coding, plan.books[c.book].book.size) for c in plan.channels]),
    )


def numbers_of(plan: Plan, group: PlannedGroup) -> Group:
    """(cells, digits kept or none, numbers of each channel), as the coder takes them."""
    splats, part = plan.splats, group.part
    digits = np.zeros(0, np.uint8) if splats.digits is None else splats.digits[part]
    return splats.cells[part], digits, [channel.values[part] for channel in plan.channels]
