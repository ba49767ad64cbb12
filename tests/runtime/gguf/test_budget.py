"""The memory budget is kept where it counts: under a hard cgroup limit of baseline + budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gguf_cases import SMALL_DENSE as DENSE
from benchmarks.gguf_cases import SMALL_MIXTURE as MIXTURE
from benchmarks.gguf_shapes import SHAPES, Shape
from benchmarks.synthetic_gguf import tokenizer, write_gguf
from penstock.errors import BudgetError
from tests.runtime.cgroups import make_cgroup

CHILD = Path(__file__).with_name("capped_child.py")
PROMPT, TOKENS = 530, 8  # more than a batch of 512, so that its buffers are whole
CONTEXT = PROMPT + TOKENS
WORDS = replace(
    SHAPES["tiny-llama"], name="budget-words", layers=4, width=512, neurons=8192, heads=8,
    vocab=150_000,
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A child's end: its output, its standard error, most memory of its group, kills."""

    output: str
    errors: str
    peak: int
    killed: bool


def run_child(
    cache: Path, path: str, limit: int | None = None, prompt: int = PROMPT, **options: Any
) -> Result:
    with make_cgroup() as cgroup:
        if limit is not None:
            cgroup.limit(limit)
        argv: list[str] = [sys.executable, str(CHILD), str(cgroup.path / "cgroup.procs"), path]
        argv.append(json.dumps(options))
        done = subprocess.run(
            [*argv, str(prompt), str(TOKENS)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        )
        return Result(done.stdout, done.stderr, cgroup.peak, cgroup.kills > 0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def baseline(llama_cpp: None, cache: Path) -> int:
    """What the interpreter takes with everything imported; the first run warms the page cache."""
    for _ in range(2):
        result = run_child(cache, "-")
        assert result.output == "{}\n", result.errors
    return result.peak


@pytest.fixture(scope="module", params=[DENSE, MIXTURE], ids=["dense", "mixture"])
def path(
    request: pytest.FixtureRequest, llama_cpp: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    shape: Shape = request.param
    (path,) = write_gguf(shape, tmp_path_factory.mktemp("large") / f"{shape.name}.gguf")
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    yield path
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("percent", [35, 75])
def test_a_child_keeps_its_budget(path: Path, baseline: int, cache: Path, percent: int) -> None:
    size = path.stat().st_size
    assert 250e6 < size < 450e6
    budget = size * percent // 100
    result = run_child(cache, str(path), baseline + budget, memory=budget, context=CONTEXT)
    assert not result.killed, f"killed for memory\n{result.errors}"
    assert result.output, result.errors
    found = json.loads(result.output)
    plan = found["plan"]
    assert plan["mode"] == ("experts" if plan["experts"] else "stream")
    assert plan["total"] <= budget and found["read"] > 0 and 0 < found["sum"] < float("inf")


@pytest.mark.slow
def test_the_least_budget_keeps_it_too(path: Path, baseline: int, cache: Path) -> None:
    import penstock

    with pytest.raises(BudgetError) as error:
        penstock.plan(path, memory="1MiB", context=CONTEXT)
    least = error.value.least_bytes
    assert least is not None
    result = run_child(cache, str(path), baseline + least, memory=least, context=CONTEXT)
    assert not result.killed, f"killed for memory\n{result.errors}"
    assert json.loads(result.output)["plan"]["total"] <= least


def write_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model with as many words and merges as the large vocabularies have."""

    def many(vocab: int) -> dict[str, Any]:
        merges = [f"Ġw{i} {i % 10}" for i in range(vocab)]
        return {**tokenizer(vocab), "tokenizer.ggml.merges": merges}

    monkeypatch.setattr("benchmarks.synthetic_gguf.tokenizer", many)
    return write_gguf(WORDS, path)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["words", "parts"])
def test_what_is_no_weight_is_in_the_budget(
    kind: str, baseline: int, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer, of a vocabulary of 150,000; a queue of reads for each of eight parts."""
    import penstock

    out = tmp_path / "m.gguf"
    if kind == "words":
        path = write_words(out, monkeypatch)
    else:
        path = write_gguf(replace(DENSE, layers=4), out, parts=8)[0]
    with pytest.raises(BudgetError) as error:
        penstock.plan(path, memory="1MiB", context=256)
    least = error.value.least_bytes
    assert least is not None
    limit = baseline + least
    result = run_child(cache, str(path), limit, prompt=200, memory=least, context=256)
    assert not result.killed, f"killed for memory\n{result.errors}"
    plan = json.loads(result.output)["plan"]
    assert plan["mode"] == "stream" and plan["total"] <= least
    assert kind == "parts" or plan["tokenizer"] > 40e6


@pytest.mark.slow
@pytest.mark.parametrize("path", [DENSE], ids=["dense"], indirect=True)
def test_a_limit_below_the_budget_does_kill(path: Path, baseline: int, cache: Path) -> None:
    """The limit is real: with half of what the plan takes, the child does not live."""
    budget = path.stat().st_size // 2
    result = run_child(cache, str(path), baseline + budget // 2, memory=budget, context=CONTEXT)
    assert result.killed
