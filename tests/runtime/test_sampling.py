"""The sampler against a plain, slow reference and against probabilities worked out by hand."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.errors import PenstockError, UsageError
from penstock.runtime.sampling import Sampler, SamplingParams


def plain_probabilities(
    logits: Sequence[float], history: Sequence[int], params: SamplingParams
) -> dict[int, float]:
    """Each step of the module's docstring, one token at a time."""
    values = dict(enumerate(float(np.float32(value)) for value in logits))
    if params.repetition_window:
        for i in set(history[-params.repetition_window :]):
            factor = params.repetition_penalty
            value = values[i] / factor if values[i] > 0 else values[i] * factor
            values[i] = float(np.float32(value))
    best = max(values.values())
    if params.temperature == 0:
        return {min(i for i in values if values[i] == best): 1.0}
    order = sorted(values, key=lambda i: (-values[i], i))
    if params.top_k:
        order = order[: params.top_k]
    weights = {i: math.exp((values[i] - best) / params.temperature) for i in order}
    total = math.fsum(weights.values())
    if params.top_p < 1:
        kept, mass = [], 0.0
        for i in order:
            kept.append(i)
            mass += weights[i]
            if mass >= params.top_p * total:
                break
        order = kept
    order = [i for i in order if weights[i] >= params.min_p]
    total = math.fsum(weights[i] for i in order)
    return {i: weights[i] / total for i in order if weights[i] > 0}


def draw(logits: NDArray[np.float32], count: int, **options: Any) -> Counter[int]:
    sampler = Sampler(SamplingParams(seed=5, **options))
    return Counter(sampler.sample(logits) for _ in range(count))


LOGITS = np.array([1.0, 3.0, 2.0, 3.0, -1.0, 0.5, 2.5, -4.0], np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 3.0, "top_k": 3},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 100},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "min_p": 0.3},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "min_p": 0.1},
    ],
)
def test_distribution_is_the_references(options: dict[str, Any]) -> None:
    count = 6000
    expected = plain_probabilities(list(LOGITS), [], SamplingParams(**options))
    seen = draw(LOGITS, count, **options)
    assert set(seen) <= set(expected)
    # Chi-squared with a fixed seed; its 99.9 % point for 7 degrees of freedom is 24.3.
    statistic = sum((seen[i] - count * p) ** 2 / (count * p) for i, p in expected.items())
    assert statistic < 24.3
    # It can tell apart: a distribution that is off by a tenth fails by far.
    if len(expected) > 3:
        wrong = plain_probabilities(
            list(LOGITS), [], SamplingParams(**{**options, "temperature": 0.7})
        )
        if set(wrong) == set(expected):
            assert sum((seen[i] - count * p) ** 2 / (count * p) for i, p in wrong.items()) > 24.3


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.integers(-80, 80).map(lambda i: i / 4), st.sampled_from([1.0, -math.inf])),
        min_size=1,
        max_size=40,
    ),
    data=st.data(),
)
def test_candidates_are_the_references(values: list[float], data: st.DataObject) -> None:
    if max(values) == -math.inf:
        values.append(0.0)
    logits = np.array(values, np.float32)
    params = SamplingParams(
        temperature=data.draw(st.sampled_from([0.0, 0.3, 1.0, 2.5])),
        top_k=data.draw(st.integers(0, 45)),
        top_p=data.draw(st.sampled_from([1.0, 0.95, 0.5, 0.1])),
        min_p=data.draw(st.sampled_from([0.0, 0.05, 0.5])),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.3, 0.5])),
        repetition_window=data.draw(st.integers(0, 5)),
        seed=data.draw(st.integers(0, 99)),
    )
    history = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=8))
    before = logits.copy()
    expected = plain_probabilities(values, history, params)
    sampler = Sampler(params)
    penalized = sampler._penalized(logits, history)
    if params.temperature == 0:
        assert {sampler.sample(logits, history): 1.0} == expected
    else:
        ids, weights = sampler._candidates(penalized)
        found = {int(i): w / weights.sum() for i, w in zip(ids, weights, strict=True) if w > 0}
        # A sum that differs in its last bit may move the edge of top-p by one token.
        near = set(found) ^ set(expected)
        assert all({**found, **expected}[i] < 1e-6 for i in near)
        for i in set(found) & set(expected):
            assert found[i] == pytest.approx(expected[i], rel=1e-5)
        assert sampler.sample(logits, history) in found
    np.testing.assert_array_equal(logits, before)


def test_greedy_is_argmax_and_takes_the_lowest_of_equals() -> None:
    sampler = Sampler(SamplingParams())
    assert sampler.sample(LOGITS) == 1
    assert sampler.sample(np.array([-math.inf, -5, -5], np.float32)) == 1


def test_top_k_ties_take_the_lowest_ids() -> None:
    logits = np.zeros(5000, np.float32)
    logits[4000] = 1.0
    assert set(draw(logits, 400, temperature=1.0, top_k=4)) == {0, 1, 2, 4000}


def test_top_p_takes_the_fewest_also_over_a_flat_vocabulary() -> None:
    logits = np.zeros(4096, np.float32)
    ids, weights = Sampler(SamplingParams(temperature=1.0, top_p=0.5))._candidates(logits)
    np.testing.assert_array_equal(ids, np.arange(2048))
    np.testing.assert_array_equal(weights, np.ones(2048))


def test_repetition_penalty() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    assert Sampler(SamplingParams(repetition_penalty=1.5)).sample(logits, [0]) == 1
    assert Sampler(SamplingParams(repetition_penalty=1.5)).sample(logits, [2]) == 0
    near = SamplingParams(repetition_penalty=1.5, repetition_window=2)
    assert Sampler(near).sample(logits, [0, 2, 2]) == 0  # 0 is no longer lately
    assert Sampler(near).sample(logits, [2, 0, 2]) == 1
    negative = np.array([-1.0, -1.1], np.float32)
    assert Sampler(SamplingParams(repetition_penalty=1.5)).sample(negative, [0]) == 1
    for outside in ([3], [-1]):
        with pytest.raises(UsageError, match="expected 0 to 2"):
            Sampler(near).sample(logits, outside)


def test_the_same_seed_gives_the_same_tokens_everywhere() -> None:
    logits = np.linspace(-2, 2, 1000, dtype=np.float32)
    params = SamplingParams(temperature=1.0, top_k=500, top_p=0.9, seed=1234)
    sampler = Sampler(params)
    tokens = [sampler.sample(logits) for _ in range(8)]
    # Written down from x86-64; a platform that differs fails here.
    assert tokens == [642, 912, 682, 943, 928, 975, 947, 928]
    again = Sampler(params)
    assert tokens == [again.sample(logits) for _ in range(8)]
    other = Sampler(SamplingParams(temperature=1.0, top_k=500, top_p=0.9, seed=1235))
    assert tokens != [other.sample(logits) for _ in range(8)]
    # The same by hand: the first token, best first, at which the sum of shares passes the draw.
    shares = plain_probabilities(list(logits), [], params)
    draws = np.random.Generator(np.random.PCG64(1234)).random(8)
    for token, drawn in zip(tokens, draws, strict=True):
        sums = itertools.accumulate(shares.values())
        assert next(i for i, total in zip(shares, sums, strict=True) if total > drawn) == token


def test_a_fresh_seed_can_be_repeated() -> None:
    first, second = (Sampler(SamplingParams(temperature=1.0)) for _ in range(2))
    assert first.seed != second.seed
    repeated = Sampler(SamplingParams(temperature=1.0, seed=first.seed))
    logits = np.zeros(1 << 16, np.float32)
    assert [first.sample(logits) for _ in range(4)] == [repeated.sample(logits) for _ in range(4)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_an_error(temperature: float, bad: float) -> None:
    logits = LOGITS.copy()
    logits[5] = bad
    with pytest.raises(PenstockError, match="highest logit is"):
        Sampler(SamplingParams(temperature=temperature)).sample(logits)
    with pytest.raises(PenstockError, match="-inf"):
        Sampler(SamplingParams(temperature=temperature)).sample(np.full(3, -math.inf, np.float32))


@pytest.mark.parametrize("shape", [(0,), (1, 8), ()])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="expected \\(vocab,\\)"):
        Sampler(SamplingParams()).sample(np.zeros(shape, np.float32))


def test_extreme_values_draw_without_warnings() -> None:
    logits = np.array([3e38, -3e38, 1.0, -math.inf, 0.0], np.float32)
    assert draw(logits, 50, temperature=1e-300) == {0: 50}
    assert draw(logits, 50, temperature=1e30, top_p=0.5) == {0: 50}
    sampler = Sampler(SamplingParams(repetition_penalty=1e300))
    assert sampler.sample(logits, [0, 1, 3, 4]) == 2
    assert sampler.sample(logits, [0, 1, 2, 3, 4]) == 0  # all are zero or less: the lowest id


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_window", -1),
        ("seed", -1),
        ("seed", 1 << 64),
        ("seed", 0.5),
        ("stop", "END"),
        ("stop", ("",)),
        ("max_tokens", 0),
        ("max_tokens", None),
    ],
)
def test_values_out_of_range_name_the_parameter(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name} is .*; expected ") as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)


def test_numpy_numbers_and_lists_of_stops_are_welcome() -> None:
    params = SamplingParams(top_k=np.int64(3), temperature=np.float32(1), stop=["a"])  # type: ignore[arg-type]
    assert params.stop == ("a",)
    assert hash(params) == hash(SamplingParams(top_k=3, temperature=1.0, stop=("a",)))


@pytest.mark.parametrize(
    "options", [{"top_k": 40}, {"top_k": 40, "top_p": 0.95}, {"top_p": 0.9}, {"min_p": 0.05}, {}]
)
def test_a_large_vocabulary_is_fast_enough(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).normal(0, 3, 128_256).astype(np.float32)
    sampler = Sampler(SamplingParams(temperature=0.8, seed=0, **options))
    sampler.sample(logits)
    start = time.process_time()
    for _ in range(5):
        sampler.sample(logits)
    assert (time.process_time() - start) / 5 < 0.1  # about 1 ms; far from a plain Python loop
