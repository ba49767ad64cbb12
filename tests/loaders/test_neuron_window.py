"""The neuron window against a model of plain sets, as LLM in a flash (section 3.3) describes it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock import _native

NEURONS = 12
EMPTY = -1


class WindowMachine(RuleBasedStateMachine):
    """The oracle keeps when each neuron in memory was last active, and every activity's time.

    `slots` plays the window's memory: what its moves copy and its misses read, content = neuron.
    """

    @initialize(capacity=st.integers(0, NEURONS), window_tokens=st.sampled_from([0, 0, 1, 2, 5]))
    def start(self, capacity: int, window_tokens: int) -> None:
        self.window = _native.NeuronWindow(NEURONS, capacity, window_tokens)
        self.capacity = capacity
        self.window_tokens = window_tokens
        self.now = 0
        self.last_active: dict[int, int] = {}
        self.uses: dict[int, list[int]] = {n: [] for n in range(NEURONS)}
        self.slots = [EMPTY] * capacity

    def heat(self, neuron: int) -> float:
        """Uses, of which each later token keeps KEEP."""
        return sum(_native.NeuronWindow.KEEP ** (self.now - t) for t in self.uses[neuron])

    @rule(active=st.sets(st.integers(0, NEURONS - 1)))
    def token(self, active: set[int]) -> None:
        self.now += 1
        for neuron in active:
            self.uses[neuron].append(self.now)
        before = dict(self.last_active)
        self.window.update(np.array(sorted(active), np.int32))
        hits, misses = dict(self.window.hits), dict(self.window.misses)
        overflow = self.window.overflow

        assert hits.keys() == active & before.keys()
        wanted = active - before.keys()
        assert list(misses) + overflow == sorted(wanted)  # the first ones get slots
        expired = self._expired(before, active)
        free = self.capacity - len(before) + len(expired)
        idle = before.keys() - active - expired
        assert len(misses) == min(len(wanted), free + len(idle))  # active ones are never evicted
        evicted_for_room = max(0, len(misses) - free)

        for source, target in self.window.moves:
            self.slots[target] = self.slots[source]
        for neuron, slot in misses.items():
            self.slots[slot] = neuron
        live = {self.window.neuron_of(slot) for slot in range(self.window.live)}
        gone = before.keys() - live
        assert expired <= gone
        assert len(gone) == len(expired) + evicted_for_room
        assert live == (before.keys() - gone) | misses.keys()
        # The coldest first.
        hottest = max((self.heat(n) for n in gone - expired), default=0.0)
        assert all(self.heat(n) >= hottest * (1 - 1e-5) for n in idle - gone)

        self.last_active = {n: before[n] for n in before.keys() - gone}
        self.last_active |= {n: self.now for n in hits.keys() | misses.keys()}
        for neuron, slot in (hits | misses).items():
            assert self.window.neuron_of(slot) == neuron

    @rule(neuron=st.integers(0, NEURONS - 1))
    def admit(self, neuron: int) -> None:
        slot, there = self.window.admit(neuron)
        assert there == (neuron in self.last_active)
        self.uses[neuron].append(self.now)
        if not there and len(self.last_active) == self.capacity:
            assert slot == -1
            return
        assert self.window.neuron_of(slot) == neuron
        self.slots[slot] = neuron
        self.last_active[neuron] = self.now

    @rule()
    def clear(self) -> None:
        self.window.clear()
        self.last_active = {}
        self.slots = [EMPTY] * self.capacity

    def _expired(self, before: dict[int, int], active: set[int]) -> set[int]:
        """What leaves because its last activity is window_tokens tokens ago."""
        if self.window_tokens == 0:
            return set()
        limit = self.now - self.window_tokens
        return {n for n, last in before.items() if last <= limit and n not in active}

    @invariant()
    def live_prefix_is_dense_and_its_content_is_right(self) -> None:
        if not hasattr(self, "window"):
            return
        live = self.window.live
        assert live == len(self.last_active) <= self.capacity == self.window.capacity
        held = [self.window.neuron_of(slot) for slot in range(live)]
        assert set(held) == self.last_active.keys() and len(set(held)) == live
        assert self.slots[:live] == held
        with pytest.raises(IndexError):
            self.window.neuron_of(live)

    @invariant()
    def nothing_older_than_the_token_window_stays(self) -> None:
        if hasattr(self, "window") and self.window_tokens:
            ages = [self.now - last for last in self.last_active.values()]
            assert all(age < self.window_tokens for age in ages)


WindowMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestWindow = WindowMachine.TestCase


def test_long_run_of_a_large_window_keeps_every_slot_right() -> None:
    """Like a real layer: thousands of neurons, active sets that drift."""
    rng = np.random.default_rng(0)
    neurons, capacity = 2048, 300
    window = _native.NeuronWindow(neurons, capacity, 0)
    slots = np.full(capacity, EMPTY)
    score = rng.normal(size=neurons)
    for _ in range(300):
        score = 0.9 * score + rng.normal(size=neurons) * 0.4
        active = np.flatnonzero(score > np.quantile(score, 0.92)).astype(np.int32)
        window.update(active)
        for source, target in window.moves:
            slots[target] = slots[source]
        for neuron, slot in window.misses:
            slots[slot] = neuron
        for neuron, slot in [*window.hits, *window.misses]:
            assert slots[slot] == neuron
        held = [neuron for neuron, _ in [*window.hits, *window.misses]]
        assert sorted([*held, *window.overflow]) == active.tolist()
    assert window.live == capacity


def test_a_hot_neuron_outlives_its_silence() -> None:
    """Recency alone would evict neuron 0 after three tokens of others."""
    window = _native.NeuronWindow(8, 3)
    for _ in range(20):
        window.update(np.array([0], np.int32))
    for other in [1, 2, 3, 4, 5, 6]:
        window.update(np.array([other], np.int32))
    window.update(np.array([0], np.int32))
    assert [neuron for neuron, _ in window.hits] == [0]


def test_heat_fades_until_what_is_used_now_wins() -> None:
    window = _native.NeuronWindow(8, 2)
    for _ in range(5):
        window.update(np.array([0], np.int32))
    for t in range(4000):  # long enough for the counts to be scaled back several times
        window.update(np.array([1 + t % 2], np.int32))
    assert {window.neuron_of(slot) for slot in range(window.live)} == {1, 2}


def test_replay_is_a_run_of_updates() -> None:
    rng = np.random.default_rng(0)
    active = rng.random((40, 30)) < 0.2
    ids = np.nonzero(active)[1].astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(active.sum(1))]).astype(np.int64)
    missed, ends = _native.NeuronWindow(30, 7).replay(ids, offsets)
    window = _native.NeuronWindow(30, 7)
    for t in range(40):
        window.update(np.flatnonzero(active[t]).astype(np.int32))
        expected = [neuron for neuron, _ in window.misses] + window.overflow
        assert missed[ends[t] : ends[t + 1]].tolist() == expected


@pytest.mark.parametrize("offsets", [[0, 3], [2, 1], [-1, 1]])
def test_replay_refuses_offsets_that_leave_the_ids(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        _native.NeuronWindow(8, 2).replay(np.array([1, 2], np.int32), np.array(offsets, np.int64))


@pytest.mark.parametrize("active", [[3, 3], [4, 2], [-1], [NEURONS]])
def test_active_neurons_must_ascend_within_the_layer(active: list[int]) -> None:
    window = _native.NeuronWindow(NEURONS, 4)
    with pytest.raises(ValueError, match="ascending"):
        window.update(np.array(active, np.int32))


@pytest.mark.parametrize(
    "neurons, capacity, tokens", [(0, 0, 0), (4, 5, 0), (4, -1, 0), (4, 4, -1)]
)
def test_impossible_windows_are_refused(neurons: int, capacity: int, tokens: int) -> None:
    with pytest.raises(ValueError, match="NeuronWindow"):
        _native.NeuronWindow(neurons, capacity, tokens)


@pytest.mark.parametrize("neuron", [-1, NEURONS])
def test_admitting_a_neuron_that_is_not_there_is_refused(neuron: int) -> None:
    with pytest.raises(ValueError, match="no such neuron"):
        _native.NeuronWindow(NEURONS, 4).admit(neuron)
