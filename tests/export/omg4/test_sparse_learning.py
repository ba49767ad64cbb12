"""Which channels' models learn from every fourth number only, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.export.omg4.psplat_plan import Plan, PlannedChannel, plan_psplat
from penstock.export.omg4.psplat_writer import write_psplat
from penstock.export.omg4.sparse_learning import (
    MOST,
    coder_of,
    numbers_of,
    with_sparse_learning,
)
from penstock.export.omg4.static_quantization import quantize_splats
from penstock.loaders.splats.encoded import EncodedSplats
from penstock.loaders.splats.psplat_file import PsplatFile
from penstock.quant.entropy import NO_REFERENCE, ChannelCoding
from tests.export.omg4.test_psplat_writer import sphere
from tests.loaders.splats import psplat_reference

COUNT = 12_000


@pytest.fixture(scope="module")
def encoded() -> EncodedSplats:
    return quantize_splats(sphere(COUNT))


def channel_bits(plan: Plan) -> np.ndarray:
    coder, bits = coder_of(plan), np.zeros(1 + len(plan.channels))
    for number, group in enumerate(plan.groups):
        numbers = numbers_of(plan, group)
        bits += coder.bits(*numbers, plan.primed and number > 0)
        coder.encode(*numbers, plan.primed and number > 0, plan.primed and number == 0)
    return bits[1:]


def test_it_is_chosen_where_it_costs_next_to_nothing(encoded: EncodedSplats) -> None:
    plan = plan_psplat(encoded, 512)
    sparse = with_sparse_learning(plan)
    before, now = channel_bits(plan), channel_bits(sparse)
    assert (now <= MOST * before + 1e-6).all()
    chosen = {c.name for c in sparse.channels if c.coding.sparse}
    assert {"scale.2", "opacity.0"} <= chosen  # noise: nothing that changes along the file
    assert replace(sparse, channels=plan.channels) == plan
    everywhere = tuple(
        replace(c, coding=replace(c.coding, sparse=int(c.coding.mode in (0, 3))))
        for c in plan.channels
    )
    assert (channel_bits(replace(plan, channels=everywhere)) != before).any()


@pytest.mark.parametrize("changes", [False, True])
def test_models_that_must_unlearn_what_the_first_group_taught_learn_from_all(
    encoded: EncodedSplats, changes: bool
) -> None:
    """Alike in all groups; or like that, but for the first one, to which none of the others is."""
    plan = plan_psplat(encoded, 512)
    assert plan.primed and len(plan.groups) > 3
    rng = np.random.default_rng(1)
    values = np.clip(np.rint(rng.normal(9, 1.5, COUNT)), 0, 15).astype(np.uint16)
    if changes:
        values[plan.groups[0].part] = 2
    book = next(k for k, b in enumerate(plan.books) if b.book.size >= 16)
    coding = ChannelCoding(raw=0 if plan.books[book].book.size <= 16 else 1, reference=NO_REFERENCE)
    channel = PlannedChannel("opacity.9", "opacity", 0, book, values, coding)
    found = with_sparse_learning(replace(plan, channels=(channel,)))
    assert found.channels[0].coding.sparse == int(not changes)


def test_the_second_reader_reads_such_files(encoded: EncodedSplats, tmp_path: Path) -> None:
    few = encoded.select(np.arange(2500))
    path = tmp_path / "a.psplat"
    write_psplat(path, few, least_group=300)
    with PsplatFile.open(path) as file:
        assert len(file.info.segments) > 2
        assert any(channel.coding.sparse for channel in file._head.channels)
        ours = [file.segment(k) for k in range(len(file.info.segments))]
    theirs = psplat_reference.read(path)
    for own, group in zip(ours, theirs, strict=True):
        assert np.allclose(own.means, group.positions, rtol=1e-6)
        assert np.allclose(own.opacities, np.array(group.columns["opacity"])[:, 0], atol=1e-6)
        assert np.allclose(np.log(own.scales), group.columns["scale"], atol=1e-5)
