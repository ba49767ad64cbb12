"""Which channels' models, once they have settled, learn from every fourth number only.

That is decoded in less time. What it costs is counted on the whole file: of a sample it would not
be seen where the first group, which all others go on from, is unlike them.
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


def with_sparse_learning(plan: Plan) -> Plan:
    """The plan with `ChannelCoding.sparse` where that costs next to nothing."""
    channels = plan.channels
    fit = [channel.coding.mode in (DIRECT, NARROW) for channel in channels]
    sparse = [
        replace(channel, coding=replace(channel.coding, sparse=int(may)))
        for channel, may in zip(channels, fit, strict=True)
    ]
    tried = replace(plan, channels=tuple(sparse))
    chosen = [
        new if cost <= MOST * before else old
        for old, new, before, cost in zip(channels, sparse, _bits(plan), _bits(tried), strict=True)
    ]
    return replace(plan, channels=tuple(chosen))


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


def _bits(plan: Plan) -> list[float]:
    """That each channel takes in all."""
    coder, found = coder_of(plan), np.zeros(1 + len(plan.channels))
    for number, group in enumerate(plan.groups):
        numbers = numbers_of(plan, group)
        found += coder.bits(*numbers, plan.primed and number > 0)
        if plan.primed and number == 0:
            coder.encode(*numbers, False, True)
    return [float(bits) for bits in found[1:]]
