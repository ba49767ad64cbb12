"""Cells: every mean is within half of the cell that is left of it, however few digits are kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.quant.lattice import Lattice, digits_by_size

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, bits=st.integers(1, 21), few=st.booleans())
def test_a_mean_is_within_its_cell(seed: int, bits: int, few: bool) -> None:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(int(rng.integers(1, 60)), 3)) * 10.0 ** rng.integers(-3, 4)
    lattice = Lattice.fit(means, bits=bits)
    assert lattice.problem() is None
    digits = rng.integers(1, bits + 1, len(means)).astype(np.uint8) if few else None
    cells = lattice.cells(means, digits)
    assert cells.dtype == np.uint32 and cells.max() < 1 << bits
    kept = np.full(len(means), bits) if digits is None else digits
    dropped = (bits - kept.astype(np.int64))[:, None]
    assert (cells & ((1 << dropped) - 1) == 0).all()
    edges = lattice.step[0] * 2.0**dropped
    error = np.abs(lattice.centres(cells, digits) - means)
    # Float32 rounds what is returned.
    assert (error <= edges / 2 + np.abs(means).max() * 2e-7).all()


def test_the_logarithm_is_fine_near_the_origin_and_coarse_far_away() -> None:
    lattice = Lattice(16, (-8.0,) * 3, (16 / 65536,) * 3, symmetric_log=True)
    means = np.array([[0.01, -0.01, 0.0], [1000.0, -1000.0, 1.0]])
    error = np.abs(lattice.centres(lattice.cells(means)) - means)
    assert error[0].max() < 1.5e-4 and 1e-3 < error[1].max() < 0.15


def test_digits_follow_the_middle_scale() -> None:
    lattice = Lattice(10, (0.0,) * 3, (1 / 1024,) * 3)
    scales = np.array([[9, 8 / 1024, 1e-9], [1e-9, 16 / 1024, 16 / 1024], [1e-9] * 3, [1e9] * 3])
    assert digits_by_size(scales, lattice, 8.0).tolist() == [10, 9, 10, 1]
    assert digits_by_size(scales[:0], lattice).shape == (0,)


@given(seed=seeds, parts=st.floats(1, 64))
def test_what_is_left_is_no_larger_than_asked(seed: int, parts: float) -> None:
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.uniform(-9, 3, (40, 3)))
    lattice = Lattice(16, (0.0,) * 3, (1e-4,) * 3)
    edges = 1e-4 * 2.0 ** (16 - digits_by_size(scales, lattice, parts).astype(float))
    middle = np.median(scales, axis=1)
    assert ((edges <= middle / parts * (1 + 1e-9)) | (edges <= 1e-4)).all()


def test_scenes_of_nothing_and_of_one_place() -> None:
    for means in (np.zeros((0, 3)), np.full((3, 3), 7.0)):
        lattice = Lattice.fit(means, bits=21)
        assert lattice.problem() is None
        assert np.allclose(lattice.centres(lattice.cells(means)), means, atol=1e-6)


@pytest.mark.parametrize("bits", [0, 22])
def test_what_no_lattice_is(bits: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to 21"):
        Lattice.fit(np.array([[0.0, 0, 0], [100.0, 0, 0]]), bits=bits)


def test_means_that_are_not_finite() -> None:
    with pytest.raises(UsageError, match="not finite"):
        Lattice.fit(np.array([[np.nan, 0, 0]]), bits=4)
