"""Policies on recorded runs, against hits counted by hand and by a plain simulation."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.errors import UsageError
from penstock.loaders.expert_trace import ExpertTrace
from penstock.runtime.gguf.plan import POLICIES
from penstock.runtime.gguf.replay import SHARES, replay


def trace_of(
    choices: list[list[list[int]]], experts: int, prompts: tuple[int, ...] = ()
) -> ExpertTrace:
    """choices[pass][layer] are the experts chosen."""
    flat = [e for one in choices for layer in one for e in layer]
    return ExpertTrace(
        "tiny.gguf",
        "olmoe",
        len(choices[0]),
        experts,
        max(len(layer) for one in choices for layer in one),
        np.array([int(n in prompts) for n in range(len(choices))], np.int32),
        np.array([[len(layer) for layer in one] for one in choices], np.int32),
        np.array(flat, np.int32),
    )


def random_trace(seed: int, tokens: int = 120, layers: int = 3, experts: int = 16) -> ExpertTrace:
    rng = np.random.default_rng(seed)
    heat = rng.dirichlet(np.full(experts, 0.3), layers)
    choices = []
    for _ in range(tokens):
        drawn = [
            rng.choice(experts, 2, replace=False, p=(h + 0.01) / (h + 0.01).sum()) for h in heat
        ]
        choices.append([sorted(map(int, one)) for one in drawn])
    return trace_of(choices, experts)


def test_by_hand() -> None:
    # One layer, room for two of four: 0 1 2 0 1 2. The least recently used is always the next one.
    run = trace_of([[[0]], [[1]], [[2]], [[0]], [[1]], [[2]]], experts=4)
    (found,) = replay(run, [0.5])
    assert found.capacity == 2
    assert found.hit_rates["lru"] == 0.0
    # Belady keeps 0 when 2 comes, then 1: hits on 0 and on 1 or 2.
    assert found.optimum == pytest.approx(2 / 6)
    assert found.behind("lru") == pytest.approx(100 * 2 / 6)


def test_layers_do_not_share_experts() -> None:
    run = trace_of([[[0], [0]], [[0], [0]]], experts=2)
    (whole,) = replay(run, [1.0])
    assert whole.capacity == 4
    assert whole.optimum == pytest.approx(0.5)  # two experts, each missed once


def test_prompts_are_left_out() -> None:
    everything = [list(range(16))] * 3
    run = random_trace(0, tokens=5)
    choices = [
        [
            run.ids[int(run.counts.reshape(-1)[: n * 3 + k].sum()) :][: run.counts[n, k]].tolist()
            for k in range(3)
        ]
        for n in range(5)
    ]
    with_prompt = trace_of([everything, *choices], 16, prompts=(0,))
    assert replay(with_prompt, [0.5]) == replay(run, [0.5])


@pytest.mark.parametrize("seed", range(5))
def test_nothing_beats_the_optimum_and_all_fit_in_the_end(seed: int) -> None:
    run = random_trace(seed)
    found = replay(run, [0.1, *SHARES, 1.0])
    for window in found:
        assert set(window.hit_rates) == set(POLICIES)
        assert all(window.behind(name) >= 0 for name in POLICIES)
        assert window.hit_rates[window.best] == max(window.hit_rates.values())
    optima = [window.optimum for window in found]
    assert optima == sorted(optima)
    whole = found[-1]
    different = len(np.unique(run.steps()[0]))
    assert set(whole.hit_rates.values()) == {whole.optimum}
    assert whole.optimum == pytest.approx(1 - different / len(run.ids))


def test_lru_is_lru() -> None:
    run = random_trace(7)
    ids, offsets = run.steps()
    held: list[int] = []
    hits = 0
    for begin, end in zip(offsets[:-1], offsets[1:], strict=True):
        step = ids[begin:end].tolist()
        hits += sum(e in held for e in step)
        held = [e for e in held if e not in step] + step
        held = held[-12:]
    (found,) = replay(run, [0.25])
    assert found.capacity == 12
    assert found.hit_rates["lru"] == pytest.approx(hits / len(ids))


def test_for_machines() -> None:
    (found,) = replay(random_trace(1), [0.5])
    document = found.to_dict()
    assert document["share"] == 0.5 and document["capacity_experts"] == 24
    assert document["points_behind_belady"]["lfu"] == pytest.approx(
        100 * (document["belady"] - document["hit_rates"]["lfu"])
    )
    assert document["best"] in POLICIES


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_a_window_that_cannot_be(share: float) -> None:
    with pytest.raises(UsageError, match="a window of"):
        replay(random_trace(1), [share])


def test_only_prompts() -> None:
    with pytest.raises(UsageError, match="all of prompts"):
        replay(trace_of([[[0, 1]]], 4, prompts=(0,)))
