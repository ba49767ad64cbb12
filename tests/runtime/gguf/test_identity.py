"""Streaming changes no bit: tokens and logits are those of stock llama.cpp with all in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.gguf_shapes import SHAPES
from penstock.errors import StorageError
from penstock.runtime.gguf.engine import GgufEngine
from penstock.runtime.gguf.plan import POLICIES
from tests.runtime.gguf.plans import DRAWN, MANY, Files, Open, Run, follow

DENSE = ["tiny-llama", "tiny-llama-tied", "tiny-qwen2", "tiny-gemma2"]
MIXTURES = [
    "tiny-olmoe", "tiny-qwen3moe", "tiny-mixtral", "tiny-gpt-oss", "tiny-deepseek2",
    "tiny-granitemoe",
]  # fmt: skip
SHARES = [0.25, 0.5, 1.0]
Stock = Callable[..., Run]


def check(engine: GgufEngine, expected: Run) -> None:
    """The same run, and weights really came and went on the way."""
    plan, streamer = engine.plan, engine.streamer
    assert streamer.stats().bytes == 0, "only what is pinned was read"
    run = follow(engine.decode, engine.vocab, count=len(expected.tokens))
    assert run.differs(expected) == ""
    stats, experts = streamer.stats(), streamer.expert_stats()
    calls = len(run.logits)
    assert stats.bytes >= calls * plan.streamed, "each pass reads what is streamed"
    assert stats.stops >= calls * bool(plan.streamed)
    assert streamer.on_demand <= 1, "all is read ahead once the second pass has begun"
    if plan.mode == "experts":
        assert 0 < streamer.held_bytes <= plan.window == streamer.window_bytes
        assert experts.misses > 0
        if plan.window < plan.expert_total:
            assert experts.evicted > 2 * plan.experts
        else:
            assert experts.evicted == 0 and experts.misses + experts.read_ahead <= (
                plan.experts * len(engine.weights.expert_blocks)
            )


def test_all_architectures_are_here() -> None:
    assert set(DENSE + MIXTURES) == {name for name in SHAPES if name.startswith("tiny")}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", DENSE + MIXTURES)
def test_each_architecture(
    files: Files, stock: Stock, open_engine: Open, name: str, share: float
) -> None:
    """With the least in memory two threads compute, and wait for weights; elsewhere one does."""
    path = files(name)
    count, threads = (MANY, 2) if share == min(SHARES) else (DRAWN, 1)
    check(open_engine(path, share, threads=threads), stock(path, count=count, threads=threads))


@pytest.mark.parametrize("share", [SHARES[0], SHARES[-1]])
@pytest.mark.parametrize("dtype", ["Q4_0", "Q4_K", "Q6_K", "Q8_0", "MXFP4", "F16"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-olmoe"])
def test_each_number_format(
    files: Files, stock: Stock, open_engine: Open, name: str, dtype: str, share: float
) -> None:
    path = files(SHAPES[name].typed(dtype))
    check(open_engine(path, share), stock(path))


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy(files: Files, stock: Stock, open_engine: Open, policy: str) -> None:
    path = files("tiny-olmoe")
    check(open_engine(path, 1.0, 0.25, policy=policy), stock(path))


@pytest.mark.parametrize("backend", ["threads", "io_uring"])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mixtral"])
def test_each_way_to_read(
    files: Files, stock: Stock, open_engine: Open, name: str, direct: bool, backend: str
) -> None:
    path = files(name)
    try:
        engine = open_engine(path, 0.25, backend=backend, direct=direct, threads=2)
    except StorageError as error:
        if "io_uring is not available" in str(error):
            pytest.skip(str(error))
        raise
    check(engine, stock(path, threads=2))


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma2", "tiny-gpt-oss", "tiny-deepseek2"])
def test_each_kv_type(
    files: Files, stock: Stock, open_engine: Open, name: str, kv_type: str
) -> None:
    path = files(name)
    expected = stock(path, kv_type)
    check(open_engine(path, 0.5, kv_type=kv_type), expected)
    assert expected.differs(stock(path)), "the type of the cache makes a difference"


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-olmoe", "tiny-gpt-oss"])
def test_parts_of_a_file(files: Files, stock: Stock, open_engine: Open, name: str) -> None:
    check(open_engine(files(name, 3), 0.25), stock(files(name)))


def test_experts_alone_and_matrices_alone(files: Files, stock: Stock, open_engine: Open) -> None:
    path = files("tiny-qwen3moe")
    only_experts = open_engine(path, 1.0, 0.3)
    assert only_experts.plan.streamed == 0
    check(only_experts, stock(path))
    check(open_engine(path, 0.0, 1.0), stock(path))
