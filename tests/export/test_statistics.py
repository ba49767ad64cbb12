"""Miss curves against a plain simulation, neuron order against what it must improve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import _native
from penstock.export.neuron_order import neuron_order
from penstock.export.statistics import WINDOWS, mean_run, miss_curve, simulated_misses


def plain_misses(active: np.ndarray, slots: int) -> int:
    """A set of neurons in memory; the one with the least decayed count of uses leaves."""
    heat = np.zeros(active.shape[1])
    held: set[int] = set()
    misses = 0
    for t, row in enumerate(active):
        now = np.flatnonzero(row).tolist()
        heat = heat * _native.NeuronWindow.KEEP + row
        if t >= min(256, len(active) // 4):
            misses += len(set(now) - held)
        for neuron in now:
            if neuron not in held and len(held) == slots:
                held.remove(min(held - set(now), key=lambda n: heat[n]))
            held.add(neuron)
    return misses


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), neurons=st.integers(4, 24), slots=st.integers(1, 24))
def test_the_curve_is_what_a_window_of_that_size_misses(
    seed: int, neurons: int, slots: int
) -> None:
    slots = min(slots, neurons - 1)
    tokens = 60
    chosen = np.random.default_rng(seed).integers(0, neurons, tokens)
    active = np.zeros((tokens, neurons), bool)
    active[np.arange(tokens), chosen] = True  # one at a time: no two neurons as hot as each other
    curve = miss_curve(active, np.array([slots / neurons], np.float32))
    expected = plain_misses(active, slots) / (tokens - tokens // 4) / neurons
    assert curve[0] == pytest.approx(expected, abs=1e-6)
    assert simulated_misses(active, slots)[tokens // 4 :].sum() == plain_misses(active, slots)


def sticky(tokens: int, neurons: int, share: float, stay: float, seed: int) -> np.ndarray:
    """Active sets of which `stay` is kept from token to token."""
    rng = np.random.default_rng(seed)
    active = np.zeros((tokens, neurons), bool)
    row = rng.random(neurons) < share
    for t in range(tokens):
        row = np.where(rng.random(neurons) < stay, row, rng.random(neurons) < share)
        active[t] = row
    return active


def test_curves_fall_from_the_active_share_to_nothing() -> None:
    active = sticky(400, 200, 0.1, 0.7, 0)
    curve = miss_curve(active)
    assert (np.diff(curve) <= 1e-6).all() and curve[-1] == 0.0
    assert curve[0] == pytest.approx(active.mean(), rel=0.15)  # two slots hold next to nothing
    at = int(np.searchsorted(WINDOWS, 0.25))
    simulated = simulated_misses(active, int(WINDOWS[at] * 200))[100:].mean()
    assert curve[at] == pytest.approx(simulated, rel=0.15)


def test_a_set_that_stays_is_read_once() -> None:
    active = np.zeros((50, 40), bool)
    active[:, :10] = True
    curve = miss_curve(active, np.array([0.1, 0.25, 0.5], np.float32))
    # Ten neurons, all equally hot: four slots keep four of them.
    assert curve.tolist() == pytest.approx([6 / 40, 0.0, 0.0])


def test_groups_that_fire_together_end_up_together() -> None:
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(120)  # groups of six, scattered
    group = np.empty(120, int)
    group[shuffled] = np.arange(120) // 6
    missed = np.stack([np.isin(group, rng.choice(20, 3, replace=False)) for _ in range(300)])
    order = neuron_order(missed[:200])
    assert sorted(order) == list(range(120))
    assert mean_run(missed[200:]) < 1.4
    assert mean_run(missed[200:], order) > 5.0


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), neurons=st.integers(1, 40), share=st.floats(0.0, 1.0))
def test_an_order_is_a_permutation_whatever_is_missed(
    seed: int, neurons: int, share: float
) -> None:
    missed = np.random.default_rng(seed).random((20, neurons)) < share
    assert sorted(neuron_order(missed)) == list(range(neurons))


def test_runs_count_neighbours() -> None:
    missed = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]], bool)
    assert mean_run(missed) == pytest.approx(5 / 4)
    assert mean_run(missed, np.array([0, 2, 1, 3])) == pytest.approx(5 / 3)
    assert mean_run(np.zeros((3, 4), bool)) == 1.0
