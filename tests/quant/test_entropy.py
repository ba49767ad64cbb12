"""Codings: what they cost, which is chosen, and that the core takes what `problem` lets by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import _native
from penstock.quant.entropy import (
    DIGITS,
    DIRECT,
    FRESH,
    MEAN_OF_TWO,
    NARROW,
    NEAREST,
    NO_REFERENCE,
    REFERENCE,
    RESIDUAL,
    SAMPLE,
    SLOPE,
    ChannelCoding,
    Reference,
    choose_coding,
    coded_bits,
    coding_rows,
    plain_coding,
    previous,
    width_of,
)

codings = st.builds(
    ChannelCoding,
    mode=st.integers(0, 3),
    raw=st.integers(0, 17),
    predictor=st.integers(0, 6),
    reference=st.sampled_from([0, 1, 2, DIGITS, NO_REFERENCE]),
    buckets=st.integers(0, 5),
    reference_buckets=st.integers(0, 5),
    slowest=st.integers(3, 10),
    sparse=st.integers(0, 2),
)


def plain_bits(values: np.ndarray, size: int) -> float:
    """With the neighbour before each, and nothing chosen."""
    numbers = np.ascontiguousarray(values, np.uint16)
    return coded_bits(numbers, size, previous(len(numbers)), plain_coding(size))


@given(coding=codings)
def test_bytes_of_a_coding(coding: ChannelCoding) -> None:
    assert len(coding.pack()) == 8
    assert ChannelCoding.unpack(coding.pack()) == coding


@settings(max_examples=300)
@given(
    coding=codings, size=st.sampled_from([1, 2, 17, 256, 4096, 4097, 65536]), digits=st.booleans()
)
def test_python_and_the_core_refuse_the_same(
    coding: ChannelCoding, size: int, digits: bool
) -> None:
    """Channel 2 of a file; a reader relies on it."""
    earlier = [(plain_coding(9), 9), (plain_coding(4), 4)]
    rows = coding_rows([*earlier, (coding, size)])
    digits_row = plain_coding(12).row(12) if digits else None
    if coding.problem(size, 2, digits) is None:
        _native.SplatCoder(12, 2, 6, digits_row, rows)
    else:
        with pytest.raises(ValueError):
            _native.SplatCoder(12, 2, 6, digits_row, rows)


def test_even_numbers_cost_their_width_and_constant_ones_nothing() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, 20_000)
    assert 7.95 < plain_bits(values, 256) / 20_000 < 8.25
    assert plain_bits(np.full(20_000, 77), 256) / 20_000 < 0.1
    assert plain_bits(values[:0], 256) == 0
    assert plain_bits(np.zeros(9, np.int64), 1) == 0


def test_skewed_numbers_cost_about_their_entropy() -> None:
    rng = np.random.default_rng(1)
    for share in (0.5, 0.2, 0.05):
        values = np.minimum(rng.geometric(share, 50_000) - 1, 255)
        counts = np.bincount(values) / len(values)
        entropy = -(counts[counts > 0] * np.log2(counts[counts > 0])).sum()
        assert plain_bits(values, 256) / len(values) < entropy * 1.02 + 0.02


def chosen(
    values: np.ndarray, size: int, references: list[Reference] | None = None
) -> tuple[ChannelCoding, float]:
    """The coding and its bits a number."""
    numbers = values.astype(np.uint16)
    near = previous(len(numbers))
    coding = choose_coding(numbers, size, near, references or [])
    used = next((r for r in references or [] if r.number == coding.reference), None)
    used = used if coding.uses_reference else None
    return coding, coded_bits(numbers, size, near, coding, used) / max(1, len(numbers))


def test_slow_changes_are_predicted() -> None:
    rng = np.random.default_rng(2)
    values = np.clip(np.cumsum(rng.integers(-2, 3, 20_000)) // 2 + 5000, 0, 9999)
    coding, bits = chosen(values, 10_000)
    assert coding.mode == RESIDUAL and coding.predictor in (NEAREST, MEAN_OF_TWO)
    assert bits < 2.6 < plain_bits(values, 10_000) / len(values)


def test_a_channel_that_follows_another_is_coded_by_it() -> None:
    rng = np.random.default_rng(3)
    other = rng.integers(0, 256, 20_000).astype(np.uint16)
    values = np.clip(other.astype(int) + rng.integers(-3, 4, len(other)), 0, 255)
    coding, bits = chosen(values, 256, [Reference(5, other, 256)])
    assert coding.reference == 5 and coding.uses_reference
    assert bits < 4 and chosen(values, 256)[1] > 7.5


def test_numbers_of_which_few_are_frequent_take_one_symbol_each() -> None:
    rng = np.random.default_rng(8)
    bell = np.clip(np.rint(rng.normal(9, 2.1, 20_000)), 0, 18).astype(np.uint16)
    coding, bits = chosen(bell, 19)
    assert coding.mode == NARROW and 2 <= coding.raw <= 4
    counts = np.bincount(bell) / len(bell)
    assert bits < 1.03 * -(counts[counts > 0] * np.log2(counts[counts > 0])).sum()
    assert chosen(3 * bell, 55)[0].mode != NARROW  # the same, further apart


def test_numbers_are_frequent_only_where_they_are_everywhere() -> None:
    """The middle, which codings are chosen by, has 15 numbers; what comes before and after, all."""
    rng = np.random.default_rng(9)
    middle = rng.integers(30, 40, SAMPLE + 5000)
    values = np.concatenate([rng.integers(0, 64, 30_000), middle, rng.integers(0, 64, 30_000)])
    coding, _ = chosen(values, 64)
    assert coding.mode != NARROW
    assert chosen(middle, 64)[0].mode == NARROW


def test_noise_is_not_modelled_in_vain() -> None:
    rng = np.random.default_rng(4)
    for size in (16, 4096, 50_000):
        coding, bits = chosen(rng.integers(0, size, 3000), size)
        assert coding.mode == DIRECT and bits < width_of(size) + 0.001


def test_fresh_numbers_need_no_index() -> None:
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.concatenate([np.arange(5000), rng.integers(0, 5000, 4000)]))
    _, first = np.unique(labels, return_index=True)
    order = np.empty(5000, np.int64)
    order[np.argsort(first)] = np.arange(5000)
    values = order[labels].astype(np.uint16)
    near = previous(len(values))
    fresh = coded_bits(values, 5000, near, ChannelCoding(mode=FRESH))
    assert fresh < 0.65 * plain_bits(values, 5000)
    with pytest.raises(ValueError, match="first appearance"):
        coded_bits(values[::-1].copy(), 5000, near, ChannelCoding(mode=FRESH))


@pytest.mark.parametrize("mode", [DIRECT, RESIDUAL, NARROW])
@pytest.mark.parametrize("predictor", range(6))
def test_bits_are_those_of_the_file(mode: int, predictor: int) -> None:
    """Counted alone and encoded in a group of splats in a row, whose neighbours are known."""
    rng = np.random.default_rng(6)
    n = 3000
    cells = np.zeros((n, 3), np.uint32)
    first = rng.integers(0, 50, n).astype(np.uint16)
    values = ((first * 3 + rng.integers(0, 20, n)) % 200).astype(np.uint16)
    uses = predictor in (SLOPE, REFERENCE)
    coding = ChannelCoding(mode, 0, predictor, 0 if uses else NO_REFERENCE, 3 * (mode != RESIDUAL))
    rows = coding_rows([(plain_coding(50), 50), (coding, 200)])
    coder = _native.SplatCoder(1, 0, 7, None, rows)
    none = np.zeros(0, np.uint8)
    bits = coder.bits(cells, none, [first, values])
    near = _native.splat_neighbours(cells, none, 1)
    assert (near == previous(n)).all()  # all in one place: the latest is the nearest
    alone = coded_bits(values, 200, near, coding, Reference(0, first, 50) if uses else None)
    assert bits[2] == pytest.approx(alone)
    payload = coder.encode(cells, none, [first, values])
    assert len(payload) * 8 == pytest.approx(sum(bits), rel=0.01, abs=200)
    read_cells, _, channels = coder.decode(np.frombuffer(payload, np.uint8), n)
    assert (read_cells == 0).all() and (channels[1] == values).all()


def test_what_the_native_coder_refuses() -> None:
    values, near = np.array([3, 9], np.uint16), previous(2)
    with pytest.raises(ValueError, match="below"):
        coded_bits(values, 5, near, plain_coding(5))
    with pytest.raises(ValueError, match="earlier"):
        coded_bits(values, 10, np.array([-1, 1], np.int32), plain_coding(10))
    bad = replace(plain_coding(10), predictor=SLOPE)
    with pytest.raises(ValueError, match="reference"):
        coded_bits(values, 10, near, bad)


def unaligned(array: np.ndarray) -> np.ndarray:
    """The same numbers, from an odd address on."""
    room = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    room[...] = array
    return room


def test_arrays_at_any_byte_are_refused() -> None:
    rows = coding_rows([(plain_coding(9), 9)])
    cells = np.arange(12, dtype=np.uint32).reshape(4, 3)
    values, none = np.arange(4, dtype=np.uint16), np.zeros(0, np.uint8)
    before, entries = np.arange(-1, 3, dtype=np.int32), np.zeros((5, 2), np.float32)
    out = np.zeros((4, 2), np.float32)
    coder = _native.SplatCoder(12, 2, 6, None, rows)
    payload = np.frombuffer(coder.encode(cells, none, [values]), np.uint8)
    assert (coder.decode(payload, 4)[2][0] == values).all()
    for call in (
        lambda: _native.SplatCoder(12, 2, 6, None, unaligned(rows)),
        lambda: coder.encode(unaligned(cells), none, [values]),
        lambda: coder.bits(cells, none, [unaligned(values)]),
        lambda: _native.encode_sheets([unaligned(values)], [1], rows),
        lambda: _native.encode_sheets([values], [1], unaligned(rows)),
        lambda: _native.decode_sheets(payload, [(4, 1)], unaligned(rows)),
        lambda: _native.channel_bits(unaligned(values), before, rows, None),
        lambda: _native.channel_bits(values, unaligned(before), rows, None),
        lambda: _native.channel_bits(values, before, rows, unaligned(values)),
        lambda: _native.channel_bits(values, before, unaligned(rows), None),
        lambda: _native.splat_neighbours(unaligned(cells), none, 12),
        lambda: _native.gather_entries([(unaligned(entries), values, 0, False)], out),
        lambda: _native.gather_entries([(entries, unaligned(values), 0, False)], out),
        lambda: _native.gather_entries([(entries, values, 0, False)], unaligned(out)),
    ):
        with pytest.raises(ValueError, match="is not aligned to"):
            call()


def test_entries_are_gathered() -> None:
    rng = np.random.default_rng(1)
    books = [rng.normal(size=shape).astype(np.float32) for shape in ((7, 1), (5, 2), (9, 2))]
    indices = [rng.integers(0, len(book), 600).astype(np.uint16) for book in books]
    room = np.full((600, 6), np.nan, np.float32)
    out = room[:, 1:]  # rows do not follow each other, as in a model's sh
    firsts, adds = (0, 1, 2), (False, False, True)
    out[:, 3] = 1.5
    _native.gather_entries(list(zip(books, indices, firsts, adds, strict=True)), out)
    first, second, third = (book[i] for book, i in zip(books, indices, strict=True))
    np.testing.assert_array_equal(out[:, 0], first[:, 0])
    np.testing.assert_array_equal(out[:, 1], second[:, 0])
    np.testing.assert_array_equal(out[:, 2], second[:, 1] + third[:, 0])
    np.testing.assert_array_equal(out[:, 3], np.float32(1.5) + third[:, 1])
    assert np.isnan(room[:, [0, 5]]).all()
    for index, width, transposed, message in (
        (indices[1][:-1], 2, False, "an index for each row"),
        (np.full(600, 5, np.uint16), 2, False, "not below its codebook's size"),
        (indices[1], 1, False, "past the last column"),
        (indices[1], 2, True, "must follow each other"),
    ):
        wrong = np.zeros((width, 600), np.float32).T if transposed else room[:, :width]
        with pytest.raises(ValueError, match=message):
            _native.gather_entries([(books[1], index, 0, False)], wrong)


def test_single_columns_are_gathered_in_runs() -> None:
    rng = np.random.default_rng(2)
    books = rng.normal(size=(12, 9, 1)).astype(np.float32)
    indices = rng.integers(0, 9, (12, 200)).astype(np.uint16)
    firsts = [0, 1, 2, 3, 4, 5, 6, 8, 9, 1, 2, 11]  # runs of 4, 3, 2, two that are added, one
    adds = [9 <= k < 11 for k in range(12)]
    out = np.zeros((200, 12), np.float32)
    _native.gather_entries(list(zip(books, indices, firsts, adds, strict=True)), out)
    expected = np.zeros_like(out)
    for book, own, first in zip(books, indices, firsts, strict=True):
        expected[:, first] += book[own, 0]
    np.testing.assert_array_equal(out, expected)


def test_widths() -> None:
    assert [width_of(size) for size in (0, 1, 2, 3, 256, 257, 65536)] == [0, 0, 1, 2, 8, 9, 16]
