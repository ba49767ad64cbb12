"""Codebooks in another order stand for the same, and cost less."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.export.omg4.book_order import arrange, level_coding, sheet_reference
from penstock.loaders.splats.codebook import Codebook
from penstock.quant.entropy import coded_bits, plain_coding, previous
from tests.loaders.splats.encoded_builder import random_book, random_indices


@given(seed=st.integers(0, 2**32 - 1), columns=st.integers(1, 5), users=st.integers(1, 3),
       single=st.booleans())  # fmt: skip
def test_what_indices_stand_for_stays(seed: int, columns: int, users: int, single: bool) -> None:
    rng = np.random.default_rng(seed)
    book = random_book(rng, columns, 1.0)
    count = int(rng.integers(0, 60))
    indices = [random_indices(rng, count, book.size) for _ in range(users)]
    found = arrange(book, indices, previous(count), single)
    for before, after in zip(indices, found.indices, strict=True):
        assert (book.entries[before] == found.book.entries[after]).all()
        assert found.book.problem() is None
    if found.fresh:
        assert single and users == 1
        used, first = np.unique(found.indices[0], return_index=True)
        assert (np.diff(first) > 0).all() and used.tolist() == list(range(found.book.size))
    elif book.levels is not None and count:
        used = np.unique(np.concatenate(found.indices))
        assert len(used) == found.book.size  # what nothing uses is gone


def test_a_palette_that_nearly_each_splat_has_its_own_entry_of_is_fresh() -> None:
    rng = np.random.default_rng(0)
    book = Codebook.grid(rng.normal(size=(1500, 3)), 0.05)
    indices = rng.permutation(np.concatenate([np.arange(1500), rng.integers(0, 1500, 500)]))
    found = arrange(book, [indices.astype(np.uint16)], previous(2000), True)
    assert found.fresh
    assert not arrange(book, [indices.astype(np.uint16)], previous(2000), False).fresh


def test_scalars_ascend_so_that_their_levels_cost_little() -> None:
    rng = np.random.default_rng(1)
    book = Codebook.half(rng.normal(size=200))
    indices = rng.integers(0, 200, 4000).astype(np.uint16)
    found = arrange(book, [indices], previous(4000), True).book
    assert (np.diff(found.entries[:, 0]) >= 0).all()
    coding = level_coding(found)
    assert coding is not None and found.levels is not None
    flat = found.levels.reshape(-1)
    reference = sheet_reference(flat, 65536) if coding.uses_reference else None
    bits = coded_bits(flat, 65536, previous(len(flat)), coding, reference)
    assert bits < 0.8 * 16 * found.size


def test_neighbours_that_look_alike_get_neighbouring_indices() -> None:
    rng = np.random.default_rng(2)
    values = np.stack([np.linspace(0, 1, 256), np.zeros(256)], axis=1)
    shuffled = rng.permutation(256)
    walk = np.clip(np.cumsum(rng.integers(-2, 3, 6000)) + 128, 0, 255)
    book = Codebook.grid(values[shuffled], 1 / 4096)
    indices = np.argsort(shuffled)[walk].astype(np.uint16)
    found = arrange(book, [indices], previous(6000), False)
    bits = coded_bits(
        found.indices[0], found.book.size, previous(6000), plain_coding(found.book.size)
    )
    plain = coded_bits(indices, 256, previous(6000), plain_coding(256))
    steps = np.abs(np.diff(found.indices[0].astype(int)))
    assert steps.max() <= 2 and bits <= plain * 1.05
