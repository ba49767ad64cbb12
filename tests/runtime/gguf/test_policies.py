"""Replacement policies on recorded runs: the native replay against plain Python of its rules."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.gguf_shapes import SHAPES
from penstock import _native
from penstock.runtime.gguf.plan import POLICIES
from tests.runtime.gguf.plans import Files, Open, prompt

Steps = Sequence[Sequence[int]]
Worth = Callable[[int], float]


def replay(policy: str, experts: int, capacity: int, layers: int, steps: Steps) -> tuple[int, int]:
    ids = np.array([e for step in steps for e in step], np.int32)
    offsets = np.cumsum([0, *map(len, steps)]).astype(np.int64)
    return _native.replay_experts(policy, experts, capacity, layers, ids, offsets)


# ---------------------------------------------------------------- the same rules, plainly


class Rule:
    """Sees a run step by step; what is worth least leaves."""

    def token(self) -> None: ...
    def step(self, number: int) -> None: ...
    def used(self, step: int, expert: int) -> None: ...
    def worth(self, expert: int) -> float:
        raise NotImplementedError


class Lru(Rule):
    def __init__(self) -> None:
        self.order: list[int] = []

    def used(self, step: int, expert: int) -> None:
        self.order.append(expert)

    def worth(self, expert: int) -> float:
        return max(i for i, e in enumerate(self.order) if e == expert)


class Lfu(Rule):
    def __init__(self) -> None:
        self.tokens = 0
        self.uses: list[tuple[int, int]] = []

    def token(self) -> None:
        self.tokens += 1

    def used(self, step: int, expert: int) -> None:
        self.uses.append((self.tokens, expert))

    def worth(self, expert: int) -> float:
        return sum(0.7 ** (self.tokens - t) for t, e in self.uses if e == expert)


class LastK(Lfu):
    def worth(self, expert: int) -> float:
        recent = [t for t, e in self.uses if e == expert]
        return len([t for t in recent if t > self.tokens - 32]) + 1e-9 * max(recent)


class Belady(Rule):
    def __init__(self, steps: Steps) -> None:
        self.steps, self.now = steps, 0

    def used(self, step: int, expert: int) -> None:
        self.now = step

    def worth(self, expert: int) -> float:
        later = (s for s in range(self.now + 1, len(self.steps)) if expert in self.steps[s])
        return -next(later, float("inf"))


class Adaptive(Rule):
    """Logistic regression on counts that fade at five speeds, a step after each token."""

    KEEP = np.array([0.4, 0.7, 0.9, 0.97, 0.995])

    def __init__(self, experts: int, layers: int) -> None:
        self.layers, self.layer_of = layers, np.arange(experts) * layers // experts
        self.layer = -1
        self.counts = np.zeros((experts, 5))
        self.used_now = np.zeros(experts)
        self.weights, self.bias = np.ones(5), -2.0
        self.seen: NDArray[np.float64] | None = None

    def features(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        out: NDArray[np.float64] = np.sqrt(counts + 1e-4)
        return out

    def token(self) -> None:
        if self.seen is not None:
            chance = 1 / (1 + np.exp(-self.seen @ self.weights - self.bias))
            error = chance - self.used_now
            step = self.seen.T @ error / np.maximum((self.seen**2).sum(0), 1e-3)
            self.weights = self.weights - 0.1 * step
            self.bias -= 0.05 * error.sum() / max(chance.sum(), 1e-3)
        self.counts = self.counts * self.KEEP + (1 - self.KEEP) * self.used_now[:, None]
        self.used_now[:] = 0
        self.seen = self.features(self.counts)

    def step(self, number: int) -> None:
        self.layer = number % self.layers

    def used(self, step: int, expert: int) -> None:
        self.used_now[expert] = 1

    def worth(self, expert: int) -> float:
        counts = self.counts[expert]
        if self.layer_of[expert] <= self.layer:  # it has had its turn of this token
            counts = counts * self.KEEP + (1 - self.KEEP) * self.used_now[expert]
        return float(self.features(counts) @ self.weights)


def rule(policy: str, steps: Steps) -> Rule:
    if policy == "adaptive":
        return Adaptive(EXPERTS * LAYERS, LAYERS)
    return {"lru": Lru, "lfu": Lfu, "last-k": LastK}.get(policy, lambda: Belady(steps))()


class Ambiguous(Exception):
    """Two experts were worth the same: either may leave."""


def follow(policy: str, capacity: int, layers: int, steps: Steps) -> tuple[int, int]:
    """(misses, uses)."""
    model, held, misses = rule(policy, steps), set[int](), 0
    for number, step in enumerate(steps):
        if number % layers == 0:
            model.token()
        model.step(number)
        for e in step:
            model.used(number, e)
        for e in step:
            if e in held:
                continue
            misses += 1
            if len(held) >= capacity:
                worths = sorted((model.worth(h), h) for h in held - set(step))
                if not worths:
                    continue
                if (
                    len(worths) > 1
                    and abs(worths[1][0] - worths[0][0]) < 1e-12
                    and (worths[0][0] != -float("inf"))
                ):
                    raise Ambiguous
                held.remove(worths[0][1])
            held.add(e)
    return misses, sum(map(len, steps))


# ---------------------------------------------------------------- against each other

EXPERTS, LAYERS = 6, 2  # of a layer


@st.composite
def runs(draw: st.DrawFn) -> list[list[int]]:
    """Steps of layers in turn, each with its own ids."""
    count = draw(st.integers(1, 25))
    return [
        [layer * EXPERTS + e for e in draw(st.sets(st.integers(0, EXPERTS - 1), max_size=4))]
        for _ in range(count)
        for layer in range(LAYERS)
    ]


@pytest.mark.parametrize("policy", [*POLICIES, "belady"])
@settings(deadline=None)
@given(steps=runs(), capacity=st.integers(0, EXPERTS * LAYERS))
def test_the_replay_follows_its_rule(policy: str, steps: list[list[int]], capacity: int) -> None:
    try:
        expected = follow(policy, capacity, LAYERS, steps)
    except Ambiguous:
        return
    assert replay(policy, EXPERTS * LAYERS, capacity, LAYERS, steps) == expected


@settings(deadline=None)
@given(steps=runs(), capacity=st.integers(0, EXPERTS * LAYERS))
def test_nothing_misses_less_than_belady(steps: list[list[int]], capacity: int) -> None:
    best = replay("belady", EXPERTS * LAYERS, capacity, LAYERS, steps)
    different = len({e for step in steps for e in step})
    assert different <= best[0] <= best[1] == sum(map(len, steps))
    for policy in POLICIES:
        misses, used = replay(policy, EXPERTS * LAYERS, capacity, LAYERS, steps)
        assert used == best[1] and best[0] <= misses
        if capacity == EXPERTS * LAYERS:
            assert misses == different, "all fits"
        if capacity == 0:
            assert misses == used


def test_counts_fade_and_windows_end() -> None:
    """Expert 0 was used often and long ago; 1 less often, lately."""
    steps = [*[[0]] * 20, *[[2]] * 70, *[[1]] * 10, [0], [1]]
    for policy, misses in (("lfu", 4), ("last-k", 5), ("lru", 4)):
        # 1 takes the place of 0. Once all has faded, what was used lately is worth more than 2.
        assert replay(policy, 3, 2, 1, steps)[0] == misses
    steps = [*[[0]] * 5, [1], [2], [0]]
    assert replay("lfu", 3, 2, 1, steps)[0] == 3, "0 still counts more than 1"
    assert replay("lru", 3, 2, 1, steps)[0] == 4
    steps = [*[[0]] * 40, *[[1]] * 33, [2], [0]]
    assert replay("lfu", 3, 2, 1, steps)[0] == 4, "0 has faded"
    assert replay("last-k", 3, 2, 1, steps)[0] == 4, "0 was not used for 32 tokens"
    assert replay("lru", 3, 2, 1, steps)[0] == 4


def test_adaptive_learns_what_the_router_does() -> None:
    """Favourites that stay, and favourites that change: near the better rule on both."""
    rng = np.random.default_rng(3)
    popular = rng.permutation(64) ** 1.5 + 4.0
    stays = [
        rng.choice(64, 6, replace=False, p=popular / popular.sum()).tolist() for _ in range(600)
    ]
    topic, follows = rng.permutation(64), []
    for token in range(600):
        if token % 40 == 0:
            topic = rng.permutation(64)
        follows.append(rng.choice(topic[:14], 6, replace=False).tolist())
    for steps in (stays, follows):
        misses = {p: replay(p, 64, 20, 1, steps)[0] for p in POLICIES}
        best = min(count for p, count in misses.items() if p != "adaptive")
        assert misses["adaptive"] <= 1.3 * best, misses


@pytest.mark.parametrize(
    ("policy", "experts", "capacity", "layers", "ids", "offsets", "wanted"),
    [
        ("mru", 4, 2, 1, [0], [0, 1], "no replacement policy 'mru'"),
        ("lru", 0, 2, 1, [], [0], "need experts"),
        ("lru", 4, -1, 1, [], [0], "capacity >= 0"),
        ("lru", 4, 1, 0, [], [0], "layers >= 1"),
        ("lru", 4, 1, 1, [4], [0, 1], "out of range"),
        ("belady", 4, 1, 1, [-1], [0, 1], "out of range"),
        ("lru", 4, 1, 1, [1], [0, 2], "ascend within ids"),
        ("lru", 4, 1, 1, [1, 2], [2, 1], "ascend within ids"),
        ("lru", 4, 1, 1, [1, 2], [], "at least one entry"),
    ],
)
def test_impossible_runs_are_refused(
    policy: str, experts: int, capacity: int, layers: int, ids: list[int], offsets: list[int],
    wanted: str,
) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=wanted):
        _native.replay_experts(
            policy, experts, capacity, layers, np.array(ids, np.int32), np.array(offsets, np.int64)
        )


# ---------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("name", ["tiny-olmoe", "tiny-mixtral", "tiny-gpt-oss", "tiny-deepseek2"])
def test_the_trace_is_what_llama_cpp_chose(files: Files, open_engine: Open, name: str) -> None:
    from benchmarks.gguf_routing import Model

    shape, path, tokens = SHAPES[name], files(name), prompt(512, 40)
    engine = open_engine(path, 1.0, 0.25)
    engine.streamer.record(True)
    for token in tokens:
        engine.decode([token])
    pairs = np.array(engine.streamer.take_trace(), np.int32).reshape(-1, 2)
    starts = np.flatnonzero(pairs[:, 0] == -1)
    assert len(starts) == len(tokens)
    with Model(path, threads=2) as model:
        seen = model.decode(tokens).experts
    assert sorted(seen) == list(engine.weights.expert_blocks)
    for number, part in enumerate(np.split(pairs, starts)[1:]):
        for layer, block in enumerate(engine.weights.expert_blocks):
            found = part[part[:, 0] == layer, 1].tolist()
            assert found == sorted(seen[block][number].tolist()), "each once, ascending"
    stats = engine.streamer.expert_stats()
    assert stats.used == len(tokens) * shape.used * len(engine.weights.expert_blocks)
    assert engine.streamer.take_trace() == [], "what was taken is forgotten"
    engine.streamer.record(False)
    engine.decode([5])
    assert engine.streamer.take_trace() == []


@pytest.mark.parametrize("policy", POLICIES)
def test_the_engine_misses_what_the_replay_says(
    files: Files, open_engine: Open, policy: str
) -> None:
    """Token by token and with all experts alike in size, the two are the same machine."""
    engine = open_engine(files("tiny-olmoe"), 1.0, 0.4, policy=policy)
    plan, streamer = engine.plan, engine.streamer
    streamer.record(True)
    for token in prompt(engine.vocab, 100):
        engine.decode([token])
    pairs = np.array(streamer.take_trace(), np.int32).reshape(-1, 2)
    layers, steps = len(engine.weights.expert_blocks), list[list[int]]()
    for layer, expert in pairs.tolist():
        if layer == -1:
            steps += [[] for _ in range(layers)]
        else:
            steps[layer - layers].append(layer * plan.experts + expert)
    capacity = plan.window // plan.expert_bytes
    stats = streamer.expert_stats()
    misses, used = replay(policy, plan.experts * layers, capacity, layers, steps)
    assert used == stats.used
    # Worth the same, one or the other leaves.
    assert abs(misses - stats.misses) <= 0.02 * used
    assert stats.evicted == stats.misses - streamer.held_bytes // plan.expert_bytes


def test_other_threads_run_during_a_replay() -> None:
    ids = np.random.default_rng(0).integers(0, 20_000, 20_000).astype(np.int32)
    offsets = np.arange(20_001, dtype=np.int64)
    done, ticks = threading.Event(), list[float]()

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.monotonic()
    _native.replay_experts("lru", 20_000, 10_000, 1, ids, offsets)
    end = time.monotonic()
    done.set()
    thread.join()
    assert sum(begin < at < end for at in ticks) > 3, end - begin
