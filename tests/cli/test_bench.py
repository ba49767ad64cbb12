"""`penstock run --record-trace` and `penstock bench replay`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import penstock
from penstock.loaders.expert_trace import ExpertTrace, read_trace, write_trace
from penstock.runtime.gguf.self_test import write_experts
from tests.cli.conftest import Cli

PROMPT = "Once upon a time"
RUN = ("--context", "256", "--max-tokens", "6", "--temperature", "0")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Forty tokens of four layers of sixteen experts."""
    rng = np.random.default_rng(3)
    ids = [np.sort(rng.choice(16, 4, replace=False)) for _ in range(40 * 4)]
    made = ExpertTrace(
        "some.gguf", "olmoe", 4, 16, 4, np.zeros(40, np.int32), np.full((40, 4), 4, np.int32),
        np.concatenate(ids).astype(np.int32),
    )  # fmt: skip
    write_trace(tmp_path / "run.trace", made)
    return tmp_path / "run.trace"


def test_a_table(cli: Cli, trace: Path) -> None:
    result = cli("bench", "replay", trace)
    assert result.code == 0
    for text in ("adaptive", "lfu", "lru", "last-k", "Belady", "25%", "50%", "75%", "16 of 64"):
        assert text in result.out
    assert "40 tokens of some.gguf, 4 layers of 16 experts, 4 a token" in result.err
    assert max(map(len, result.out.splitlines())) <= 120 + len(str(trace))


def test_for_machines(cli: Cli, trace: Path) -> None:
    args = ("bench", "replay", trace, trace, "--capacity", "25%", "--capacity", "0.5", "--json")
    result = cli(*args)
    assert (result.code, result.err) == (0, "")
    first, second = result.json["traces"]
    assert first == second
    assert first["file"] == str(trace) and first["tokens"] == 40
    assert [w["share"] for w in first["windows"]] == [0.25, 0.5]
    for window in first["windows"]:
        assert set(window["hit_rates"]) == {"adaptive", "lfu", "lru", "last-k"}
        for name, rate in window["hit_rates"].items():
            behind = window["points_behind_belady"][name]
            assert behind == pytest.approx(100 * (window["belady"] - rate)) and behind >= 0


@pytest.mark.parametrize("capacity", ["0%", "150%", "half"])
def test_a_capacity_that_cannot_be(cli: Cli, trace: Path, capacity: str) -> None:
    result = cli("bench", "replay", trace, "--capacity", capacity, "--json")
    assert (result.code, result.json["error"]["code"]) == (2, "UsageError")


def test_damaged_and_missing(cli: Cli, trace: Path, tmp_path: Path) -> None:
    trace.write_bytes(trace.read_bytes()[:-4])
    result = cli("bench", "replay", trace, "--json")
    assert (result.code, result.json["error"]["code"]) == (1, "FormatError")
    result = cli("bench", "replay", tmp_path / "none", "--json")
    assert (result.code, result.json["error"]["code"]) == (1, "StorageError")


# ---------------------------------------------------------------- recording


def test_record_then_replay(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model, out = tmp_path / "experts.gguf", tmp_path / "run.trace"
    write_experts(model)
    least = penstock.plan(model, context=256).least
    plain = cli("run", model, PROMPT, *RUN, "--memory", least)
    result = cli("run", model, PROMPT, *RUN, "--memory", least, "--record-trace", out)
    assert (result.code, result.out, result.err) == (0, plain.out, plain.err)
    assert read_trace(out).tokens == 5
    assert cli("bench", "replay", out).code == 0

    resident = cli("run", model, PROMPT, *RUN, "--memory", "1GiB", "--record-trace", tmp_path / "b")
    assert (resident.code, resident.out) == (2, "")
    assert "not streamed" in resident.err and not (tmp_path / "b").exists()

    missing = tmp_path / "missing" / "run.trace"
    failed = cli("run", model, PROMPT, *RUN, "--memory", least, "--record-trace", missing, "--json")
    assert (failed.code, failed.json["error"]["code"]) == (1, "StorageError")


def test_a_bundle_is_refused(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    result = cli("run", tiny_bundle, "Once", "--record-trace", tmp_path / "t", "--json")
    assert (result.code, result.json["error"]["code"]) == (2, "UsageError")
    assert "no router to record" in result.json["error"]["message"]
    assert list(tmp_path.iterdir()) == []
