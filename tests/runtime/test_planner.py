"""The planner keeps every budget, spends it where it saves most, and expects what then happens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.errors import BudgetError, UsageError
from penstock.loaders.bundle import Bundle, open_bundle
from penstock.loaders.gguf_file import TensorInfo
from penstock.runtime.budget import format_size, parse_size
from penstock.runtime.flash_engine import FlashEngine
from penstock.runtime.plan import Plan
from penstock.runtime.planner import MODES, PlanOptions, make_plan
from tests.bundle_builder import Parts, Shape, profile, write_tiny

LAYERS, NEURONS = 4, 512
SHAPE = Shape(layers=LAYERS, neurons=NEURONS, width=128, context=128)
WINDOW = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 1.0], np.float32)


def curves(parts: Parts) -> None:
    """Layers that differ: some need a wide window, one hardly any, one has a curve with a bump."""
    misses = np.array(
        [
            [0.50, 0.30, 0.15, 0.05, 0.01, 0.0],
            [0.10, 0.02, 0.01, 0.005, 0.001, 0.0],
            [0.50, 0.49, 0.48, 0.10, 0.05, 0.0],  # not convex: pays only from half on
            [0.30, 0.20, 0.10, 0.05, 0.02, 0.0],
        ],
        np.float32,
    )
    parts.metadata |= {
        "penstock.stats.window": WINDOW,
        "penstock.stats.misses": misses.reshape(-1),
        "penstock.stats.exact_misses": (misses / 2).reshape(-1),
        "penstock.stats.active": misses[:, 0] / 2,
        "penstock.stats.predicted": misses[:, 0].copy(),
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(write_tiny(tmp_path_factory.mktemp("plan") / "b.gguf", SHAPE, curves))


def plan_of(bundle: Bundle, memory: int | None = None, **options: object) -> Plan:
    chosen = PlanOptions(memory=memory, threads=1, **options)  # type: ignore[arg-type]
    return make_plan(bundle, profile(), chosen)


def least_of(bundle: Bundle, mode: str) -> int:
    with pytest.raises(BudgetError) as error:
        plan_of(bundle, 1, mode=mode)
    assert error.value.least_bytes is not None
    return error.value.least_bytes


@pytest.mark.parametrize("mode", MODES)
def test_too_small_a_budget_names_the_least_and_the_least_works(bundle: Bundle, mode: str) -> None:
    least = least_of(bundle, mode)
    with pytest.raises(BudgetError, match=f"at least {format_size(least)}") as error:
        plan_of(bundle, least - 1, mode=mode)
    assert error.value.least_bytes == least
    plan = plan_of(bundle, least, mode=mode)
    assert plan.total <= least == plan.least
    engine = FlashEngine(bundle, plan)
    engine.prefill(np.arange(20, dtype=np.int32))
    assert np.isfinite(engine.decode(1)).all()
    assert engine.decoder.memory_bytes <= plan.total


@given(extra=st.integers(0, 8 << 20), mode=st.sampled_from(MODES), context=st.integers(1, 128))
@settings(deadline=None, max_examples=100)
def test_no_plan_takes_more_than_its_budget(
    bundle: Bundle, extra: int, mode: str, context: int
) -> None:
    with pytest.raises(BudgetError) as error:
        plan_of(bundle, 1, mode=mode, context=context)
    budget = (error.value.least_bytes or 0) + extra
    plan = plan_of(bundle, budget, mode=mode, context=context)
    assert plan.total <= budget
    assert plan.total == sum(
        (plan.weights, plan.predictors, plan.kv_cache, plan.buffers, plan.tokenizer, plan.ffn)
    )
    for layer in plan.layers:
        assert 0 <= layer.rows <= NEURONS and layer.read_bytes >= 0
        assert layer.share == pytest.approx(layer.rows / NEURONS)


@given(extra=st.integers(0, 4 << 20), mode=st.sampled_from(MODES))
@settings(deadline=None, max_examples=30)
def test_the_decoder_takes_no_more_than_the_plan_says(
    bundle: Bundle, extra: int, mode: str
) -> None:
    plan = plan_of(bundle, least_of(bundle, mode) + extra, mode=mode)
    engine = FlashEngine(bundle, plan)
    assert engine.decoder.memory_bytes <= plan.total - plan.tokenizer


@pytest.mark.parametrize("mode", MODES)
def test_more_memory_never_means_more_reading(bundle: Bundle, mode: str) -> None:
    least = least_of(bundle, mode)
    budgets = [least + step * 20_000 for step in range(80)]
    plans = [plan_of(bundle, budget, mode=mode) for budget in budgets]
    # Batch and staging grow in steps with the budget, at the windows' expense: at most an eighth.
    for small, large in itertools.pairwise(plans):
        if large.batch == small.batch and large.staging == small.staging:
            assert large.read_bytes <= small.read_bytes + 1
            assert large.ffn >= small.ffn
    assert plans[-1].read_bytes == 0
    assert plans[0].read_bytes > plans[40].read_bytes


def exchanges(bundle: Bundle, shares: list[float]) -> float:
    """Bytes read for a token with these window shares, by the curves themselves."""
    total = 0.0
    for layer, share in zip(bundle.profiles, shares, strict=True):
        assert layer is not None
        hull = _lower_hull(list(zip(WINDOW.tolist(), layer.misses.tolist(), strict=True)))
        total += float(np.interp(share, [x for x, _ in hull], [y for _, y in hull]))
    return total * NEURONS * bundle.stride


def _lower_hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no chord of others passes below: the definition, by trying them all."""
    kept = []
    for x, y in points:
        chords = (
            y0 + (y1 - y0) * (x - x0) / (x1 - x0)
            for (x0, y0), (x1, y1) in itertools.combinations(points, 2)
            if x0 < x < x1
        )
        if all(y < chord for chord in chords):
            kept.append((x, y))
    return kept


@pytest.mark.parametrize("share", [0.1, 0.2, 0.35, 0.5, 0.8])
def test_memory_goes_where_it_saves_most(bundle: Bundle, share: float) -> None:
    """No shift of memory between two layers would read less: the optimum of a convex problem."""
    plan = plan_of(bundle, ffn_share=share)
    shares = [layer.rows / NEURONS for layer in plan.layers]
    best = exchanges(bundle, shares)
    for giver, taker in itertools.permutations(range(LAYERS), 2):
        for step in (0.01, 0.05, 0.2):
            other = list(shares)
            other[giver] -= step
            other[taker] += step
            if other[giver] >= 0 and other[taker] <= 1:
                # A row of rounding in each layer is forgiven.
                assert exchanges(bundle, other) >= best - 2 * bundle.stride


def test_the_whole_layer_is_resident_when_it_fits(bundle: Bundle) -> None:
    for mode in MODES:
        plan = plan_of(bundle, ffn_share=1.0, mode=mode)
        assert {layer.residency for layer in plan.layers} == {"resident"}
        assert plan.read_bytes == 0


@pytest.mark.parametrize("share, mode", [(0.0, "dense"), (0.3, "dense"), (0.7, "dense")])
def test_expected_reads_of_dense_are_the_measured_ones(
    bundle: Bundle, share: float, mode: str
) -> None:
    plan = plan_of(bundle, ffn_share=share, mode=mode)
    assert measured_reads(bundle, plan) == pytest.approx(plan.read_bytes, rel=0.05)


def measured_reads(bundle: Bundle, plan: Plan) -> float:
    engine = FlashEngine(bundle, plan)
    rng = np.random.default_rng(0)
    engine.prefill(rng.integers(0, SHAPE.vocab, 16).astype(np.int32))
    for token in rng.integers(0, SHAPE.vocab, 30):
        engine.decode(int(token))
    engine.decoder.reset_stats()
    tokens = rng.integers(0, SHAPE.vocab, 60)
    for token in tokens:
        engine.decode(int(token))
    return engine.decoder.stats().io_bytes / len(tokens)


@pytest.mark.parametrize("mode", ["predictor", "exact"])
@pytest.mark.parametrize("share", [0.7, 0.85])
def test_expected_reads_are_the_measured_ones_where_the_curves_are_true(
    tmp_path: Path, mode: str, share: float
) -> None:
    """Curves measured on the model by a simple least-recently-active cache, not by the runtime."""
    path = tmp_path / "b.gguf"
    shape = Shape(layers=2, neurons=NEURONS, width=128, context=128)
    plain = open_bundle(write_tiny(path, shape))
    active = active_sets(plain, mode)
    write_tiny(path, shape, measured_curves(active, mode))
    bundle = open_bundle(path)
    plan = plan_of(bundle, ffn_share=share, mode=mode)
    assert any(layer.residency in ("window", "exact") for layer in plan.layers)
    assert measured_reads(bundle, plan) == pytest.approx(plan.read_bytes, rel=0.3)


def active_sets(bundle: Bundle, mode: str) -> list[list[set[int]]]:
    """Per layer, per token: what is active, or predicted, of a random text."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, SHAPE.vocab, 106).astype(np.int32)
    options = PlanOptions(mode="dense", context=128, batch=128, threads=1, ffn_share=1.0)
    engine = FlashEngine(bundle, make_plan(bundle, profile(), options))
    _, inputs, hidden = engine.captured_prefill(tokens)
    if mode == "exact":
        return [[set(np.flatnonzero(row).tolist()) for row in layer] for layer in hidden]
    raw = Path(bundle.path).read_bytes()
    out = []
    for index, predictor in enumerate(bundle.predictors):
        assert predictor is not None and predictor.bias is not None

        low = inputs[index] @ values_of(raw, predictor.fc1).T
        score = low @ values_of(raw, predictor.fc2).T + values_of(raw, predictor.bias)
        out.append([set(np.flatnonzero(row > 0).tolist()) for row in score])
    return out


def values_of(raw: bytes, info: TensorInfo) -> NDArray[np.float32]:
    dtype = {0: np.float32, 1: np.float16}[info.type]
    stored = np.frombuffer(raw[info.offset : info.offset + info.nbytes], dtype)
    return stored.astype(np.float32).reshape(info.shape)


def measured_curves(active: list[list[set[int]]], mode: str) -> Callable[[Parts], None]:
    def edit(parts: Parts) -> None:
        key = "exact_misses" if mode == "exact" else "misses"
        curve = [[misses_of(layer, share) for share in WINDOW] for layer in active]
        parts.metadata["penstock.stats.window"] = WINDOW
        for name in ("misses", "exact_misses"):
            parts.metadata[f"penstock.stats.{name}"] = np.full(2 * WINDOW.size, 0.5, np.float32)
        parts.metadata[f"penstock.stats.{key}"] = np.array(curve, np.float32).reshape(-1)

    return edit


def misses_of(tokens: list[set[int]], share: float) -> float:
    """A least-recently-active cache of this share, replayed; misses a token, second half only."""
    capacity, missed = int(share * NEURONS), 0
    last: dict[int, int] = {}
    for now, wanted in enumerate(tokens):
        if now >= len(tokens) // 2:
            missed += len(wanted - last.keys())
        keep = sorted(last.keys() - wanted, key=lambda n: -last[n])
        stay = sorted(wanted & last.keys()) + sorted(wanted - last.keys())
        room = stay[:capacity]
        last = {n: last[n] for n in keep[: max(0, capacity - len(room))]}
        last |= dict.fromkeys(room, now)
    return missed / (len(tokens) - len(tokens) // 2) / NEURONS


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "fast"}, "mode must be one of predictor, exact, dense, not 'fast'"),
        ({"ffn_share": 1.5}, "the resident share of the FFN must be 0 to 1, not 1.5"),
        ({"ffn_share": -0.1}, "must be 0 to 1"),
        ({"context": 129}, "context must be 1 to 128 tokens, not 129"),
        ({"context": -1}, "context must be 1 to 128"),
    ],
)
def test_wrong_options_are_refused(
    bundle: Bundle, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(bundle, 1 << 30, **options)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "text, size",
    [
        ("24MiB", 24 << 20),
        ("2GiB", 2 << 30),
        ("2GB", 2 * 10**9),
        ("1.5G", 3 << 29),
        ("512", 512),
        (" 512 kib ", 512 << 10),
        ("1T", 1 << 40),
        ("50%", 500),
        ("12.5%", 125),
        (77, 77),
    ],
)
def test_sizes_as_people_write_them(text: str | int, size: int) -> None:
    assert parse_size(text, 1000) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1,5G", "1e9", "12XB", "0", "0%", "1.2.3", "٣MiB", "nan", 0, -5]
)
def test_what_is_not_a_size_is_refused(text: str | int) -> None:
    with pytest.raises(UsageError, match="MiB|above 0"):
        parse_size(text, 1000)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="'50%' is not a size"):
        parse_size("50%")


@given(st.integers(1, 2**60))
def test_a_formatted_size_is_within_its_three_digits(size: int) -> None:
    assert parse_size(format_size(size).replace(" ", "")) == pytest.approx(size, rel=0.006)
