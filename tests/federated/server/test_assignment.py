"""Ratios: the mix is kept where devices allow it, and a device keeps what it has."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.federated.models import ModelOptions
from penstock.federated.server.assignment import Member, assign_ratios, select
from tests.federated.server.fake_fleet import MODEL, capabilities

MIX = ((1.0, 0.2), (0.75, 0.4), (0.5625, 0.4))


def members(count: int, **changes: object) -> dict[str, Member]:
    return {f"d{i}": Member(i, capabilities(f"d{i}", **changes)) for i in range(count)}


def test_ten_equal_devices_get_the_mix() -> None:
    given_ratios = assign_ratios(members(10), MIX, {}, MODEL)
    assert Counter(given_ratios.values()) == {1.0: 2, 0.75: 4, 0.5625: 4}


def test_the_strongest_get_the_widest() -> None:
    weak, strong = members(8, memory_bytes=1 << 28), members(10, memory_bytes=1 << 30)
    both = weak | {name: strong[name] for name in ("d8", "d9")}
    given_ratios = assign_ratios(both, MIX, {}, MODEL)
    assert given_ratios["d8"] == given_ratios["d9"] == 1.0


def test_memory_bounds_the_width() -> None:
    large = ModelOptions("sensing-mlp", (1000,), 10, (4000, 1000))
    small = {"s": Member(1, capabilities("s", memory_bytes=60 << 20))}
    assert assign_ratios(small, ((1.0, 1.0), (0.25, 0.0)), {}, large) == {"s": 0.25}


def test_a_device_below_the_mix_gets_what_it_accepts() -> None:
    tiny = {"t": Member(1, capabilities("t", most_ratio=0.1))}
    assert assign_ratios(tiny, MIX, {}, MODEL) == {"t": 0.1}


def test_a_device_that_shrank_gets_a_narrower_model() -> None:
    shrunk = {"d": Member(1, capabilities("d", most_ratio=0.6))}
    assert assign_ratios(shrunk, MIX, {"d": 1.0}, MODEL) == {"d": 0.5625}


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([1.0, 0.8, 0.6, 0.3]), st.integers(1, 4)), max_size=20),
    st.integers(0, 20),
)
def test_nobody_gets_more_than_it_accepts_and_later_rounds_change_nothing(
    devices: list[tuple[float, int]], first: int
) -> None:
    able = {
        f"d{i}": Member(i, capabilities(f"d{i}", most_ratio=ratio, cores=cores))
        for i, (ratio, cores) in enumerate(devices)
    }
    early = dict(list(able.items())[:first])
    held = assign_ratios(early, MIX, {}, MODEL)
    later = assign_ratios(able, MIX, held, MODEL)
    assert set(later) == set(able)
    assert all(ratio <= able[d].capabilities.most_ratio for d, ratio in later.items())
    assert {d: later[d] for d in held} == held
    assert assign_ratios(dict(reversed(able.items())), MIX, held, MODEL) == later


@pytest.mark.parametrize(
    ("fraction", "least", "expected"), [(1.0, 1, 10), (0.25, 1, 3), (0.01, 4, 4), (0.5, 99, 10)]
)
def test_selection_sizes(fraction: float, least: int, expected: int) -> None:
    devices = [f"d{i}" for i in range(10)]
    chosen = select(devices, fraction, least, 5)
    assert len(chosen) == len(set(chosen)) == expected
    assert chosen == select(devices[::-1], fraction, least, 5)
