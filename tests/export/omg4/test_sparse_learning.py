"""Which channels' models learn from every fourth number only, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock import _native
from penstock.export.omg4.psplat_plan import PlannedChannel, plan_psplat
from penstock.export.omg4.psplat_writer import write_psplat
from penstock.export.omg4.sparse_learning import MOST, plan_bits, with_sparse_learning
from penstock.export.omg4.static_quantization import quantize_splats
from penstock.loaders.splats.encoded import EncodedSplats
from penstock.loaders.splats.psplat_file import PsplatFile
from penstock.quant.entropy import NO_REFERENCE, ChannelCoding, coding_rows
from tests.export.omg4.test_psplat_writer import sphere
from tests.loaders.splats import psplat_reference

COUNT = 12_000


@pytest.fixture(scope="module")
def encoded() -> EncodedSplats:
    return quantize_splats(sphere(COUNT))


def test_it_is_chosen_where_it_costs_next_to_nothing(encoded: EncodedSplats) -> None:
    plan = plan_psplat(encoded, 512)
    sparse, bits = with_sparse_learning(plan)
    assert bits == plan_bits(sparse)
    before, now = np.array(plan_bits(plan))[1:], np.array(bits)[1:]
    assert (now <= MOST * before).all()
    chosen = [c.coding.sparse == 1 for c in sparse.channels]
    assert ((now != before) == chosen).all()
    names = {c.name for c in sparse.channels if c.coding.sparse}
    assert {"opacity.0", "scale.1"} <= names  # noise: nothing that changes along the file
    assert "scale.2" not in names  # one and the same thickness, which takes no symbol
    assert replace(sparse, channels=plan.channels) == plan


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
    found, _ = with_sparse_learning(replace(plan, channels=(channel,)))
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


def sparse_codings() -> list[tuple[ChannelCoding, int]]:
    """Numbers of a symbol, of two and of three, with and without raw bits and contexts."""
    shapes = [(0, 12, 0), (0, 200, 0), (0, 200, 2), (0, 3000, 0), (0, 3000, 3), (3, 40, 9)]
    return [
        (ChannelCoding(mode, raw, predictor, NO_REFERENCE, buckets, 0, slowest, 1), size)
        for mode, size, raw in shapes
        for predictor, buckets in ((0, 0), (1, 3))
        for slowest in (4, 7, 9)
    ]


def numbers_for(coding: ChannelCoding, size: int, seed: int, count: int = 1500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middle = coding.raw + 7 if coding.mode == 3 else size / 2
    spread = 3 if coding.mode == 3 else size / 12
    found = np.rint(rng.normal(middle, spread, count))
    return np.clip(found, 0, size - 1).astype(np.uint16)


def test_the_second_reader_learns_when_the_core_does() -> None:
    """Each coding in a first group, and in a second one that goes on from it."""
    codings = sparse_codings()
    rows = coding_rows(codings)
    coder = _native.SplatCoder(1, 0, 7, None, rows)
    every = coding_rows([(replace(coding, sparse=0), size) for coding, size in codings])
    other = _native.SplatCoder(1, 0, 7, None, every)
    theirs = [psplat_reference.Coding(size, coding.pack()) for coding, size in codings]
    positions = psplat_reference.Positions()
    cells, none = np.zeros((1500, 3), np.uint32), np.zeros(0, np.uint8)
    near = [-1, *range(1499)]  # all in one place: the latest is the nearest
    for group in range(2):
        numbers = [numbers_for(*coding, seed=10 * k + group) for k, coding in enumerate(codings)]
        payload = coder.encode(cells, none, numbers, group > 0, True)
        assert payload != other.encode(cells, none, numbers, group > 0, True)
        read = psplat_reference.Payload(payload)
        positions.codes(read, 1, 0, 7, [1] * 1500)
        for coding, expected in zip(theirs, numbers, strict=True):
            found = psplat_reference.channel(read, coding, near, None, 1)
            assert found == expected.tolist(), coding
        read.finish()


def test_the_second_reader_learns_from_sheets_when_the_core_does() -> None:
    for number, (coding, size) in enumerate(sparse_codings()):
        values = numbers_for(coding, size, seed=number, count=1200)
        payload = _native.encode_sheets([values], [4], coding_rows([(coding, size)]))
        all_teach = coding_rows([(replace(coding, sparse=0), size)])
        assert payload != _native.encode_sheets([values], [4], all_teach)
        read = psplat_reference.Payload(payload)
        theirs = psplat_reference.Coding(size, coding.pack())
        assert psplat_reference._sheet(read, theirs, 300, 4) == values.tolist()
        read.finish()
