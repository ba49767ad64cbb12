"""Where ordinary GGUF files cannot be streamed, commands say so before they run one."""

from __future__ import annotations

from pathlib import Path

import pytest

import penstock
from penstock import _native
from penstock.runtime.gguf.self_test import write_dense
from tests.cli.conftest import Cli


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    monkeypatch.setattr(_native, "address_space_supported", lambda: False)
    write_dense(tmp_path / "dense.gguf")
    return tmp_path / "dense.gguf"


def test_plan_and_run_say_so(cli: Cli, model: Path) -> None:
    least = penstock.plan(model, context=256).least
    options = ("--memory", least, "--context", "256")
    result = cli("plan", model, *options)
    title = " ".join(result.out.split())  # which wraps beside a narrow table
    assert result.code == 0 and "in llama.cpp's own mapping" in title
    assert result.err.startswith("Note: weights cannot be streamed on this system")
    assert "read per token unknown, as the system decides" in title
    assert "tokens per second unknown, on" in title and "expected" not in title
    assert "reads by the system, in llama.cpp's own mapping" in title and "in flight" not in title
    plan = cli("plan", model, *options, "--json").json
    assert plan["mode"] == "mapped"
    assert plan["read_bytes"] is None and plan["tokens_per_second"] is None
    assert (plan["largest_part"], plan["policy"], plan["backend"]) == (0, "none", "none")
    run = ("run", model, "Once upon a time", *options, "--max-tokens", "4")
    result = cli(*run, "--stats")
    assert result.code == 0 and result.out.strip()
    assert result.err.startswith("Note: weights cannot be streamed on this system")
    assert "read from storage unknown, by the system" in result.err
    assert "hit rate" not in result.err and "throughput" not in result.err
    stats = cli(*run, "--json").json["stats"]
    assert stats["read_bytes"] is None and stats["hit_rate"] is None and stats["generated"] == 4


def test_what_fits_needs_no_note(cli: Cli, model: Path) -> None:
    result = cli("plan", model, "--memory", "1GiB", "--context", "256")
    assert (result.code, result.err) == (0, "")
