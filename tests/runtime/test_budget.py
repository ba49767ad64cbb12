"""The memory budget is kept where it counts: under a hard cgroup limit of baseline + budget."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import BudgetError
from penstock.loaders.probe import device_of, save_profile
from penstock.runtime.budget import available_memory
from penstock.runtime.load import load_bundle, plan_bundle
from tests.bundle_builder import Parts, Shape, Stored, header_of, padded, profile, tiny_parts
from tests.runtime.cgroups import Cgroup, MakeCgroup, make_cgroup

CHILD = Path(__file__).with_name("capped_child.py")
TOKENS, MANY_TOKENS = 48, 200  # as a rule; once, where most of the FFN is streamed
FEW_TOKENS = 12  # of the large model: it is loading and the prompt that take most memory
SHARES = [1.0, 0.5, 0.25]
GIB = 1 << 30
PAGES = 64 << 10  # what layers are rounded up by
SLACK = 512 << 10  # two quick probes may differ in the gap that is worth reading through


def run_child(
    cgroup: Cgroup, path: str, cache: Path, tokens: int = TOKENS, **options: Any
) -> dict[str, Any]:
    """cache: for the probe's profile and the stamps of checked files; empty, it will measure."""
    procs = cgroup.path / "cgroup.procs"
    done = subprocess.run(
        [sys.executable, CHILD, procs, path, json.dumps(options), str(tokens)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    assert cgroup.kills == 0, f"killed for memory: {path} with {options}\n{done.stderr}"
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def baseline(cache: Path) -> int:
    """What the interpreter takes with everything imported. The first run warms the page cache,
    whose pages would otherwise count here and be missed by the later children."""
    for _ in range(2):
        with make_cgroup() as cgroup:
            run_child(cgroup, "-", cache)
            peak: int = cgroup.peak
    return peak


@dataclass(frozen=True)
class Capped:
    """Runs a model under a limit of the baseline and its budget, and checks what it took."""

    make_cgroup: MakeCgroup
    baseline: int
    cache: Path

    def run(self, path: Path, budget: int, tokens: int = TOKENS, **options: Any) -> dict[str, Any]:
        with self.make_cgroup() as cgroup:
            cgroup.limit(self.baseline + budget)
            result = run_child(cgroup, str(path), self.cache, tokens, **options)
        assert result["text"]
        assert result["total"] <= budget
        assert result["decoder"] <= result["total"] - result["tokenizer"]
        assert result["peak"] - result["before"] <= result["total"]
        return result


@pytest.fixture(scope="module")
def capped(baseline: int, cache: Path) -> Capped:
    return Capped(make_cgroup, baseline, cache)


def ffn_budget(path: Path, share: float) -> int:
    """Bytes for `--memory`: what the model needs besides, and this share of its FFN."""
    whole = plan_bundle(path, ffn_resident=1.0, threads=2)
    return whole.least + int(share * whole.ffn_whole) + SLACK


# ---------------------------------------------------------------- the embedded model


@pytest.fixture(scope="module")
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    embedded = CHILD.parents[2] / "runtime" / "data" / "storyteller.gguf"
    if embedded.is_file():
        return embedded
    pytest.importorskip("torch")
    from penstock.export.llm import export_llm

    shared: Path = request.getfixturevalue("shared_dir")
    path = tmp_path_factory.mktemp("story") / "start.gguf"
    export_llm(shared / "models" / "storyteller-start", path, calibrate=False, evaluate=False)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
def test_the_embedded_model_keeps_its_budget(capped: Capped, story: Path, share: float) -> None:
    budget = ffn_budget(story, share)
    tokens = MANY_TOKENS if share == min(SHARES) else TOKENS
    result = capped.run(story, budget, tokens, memory=budget)
    assert result["read"] > 0 or share == 1.0
    assert result["ffn"] <= budget - plan_bundle(story, ffn_resident=0.0, threads=2).least


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_embedded_model_keeps_a_share_of_its_ffn(
    capped: Capped, story: Path, share: float
) -> None:
    budget = plan_bundle(story, ffn_resident=share, threads=2).total + SLACK
    result = capped.run(story, budget, ffn_resident=share)
    assert result["ffn"] <= share * result["ffn_whole"] + PAGES
    assert result["read"] > 0


def test_a_limit_below_the_budget_does_kill(capped: Capped, story: Path) -> None:
    """The limit is real: with a third of what the plan takes, the child does not live."""
    budget = ffn_budget(story, 1.0)
    with capped.make_cgroup() as cgroup:
        cgroup.limit(capped.baseline + budget // 3)
        with pytest.raises(AssertionError, match="killed for memory"):
            run_child(cgroup, str(story), capped.cache, memory=budget)


@pytest.mark.slow
def test_the_least_budget_works_and_less_is_refused(
    capped: Capped, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a profile in the cache, so that each load knows the same of the device."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_profile(replace(profile(merge_gap=32 << 10), device=device_of(story)))
    with pytest.raises(BudgetError, match="needs at least .* the budget is 1 MiB") as error:
        load_bundle(story, memory="1MiB", threads=2)
    least = error.value.least_bytes
    assert least is not None
    with pytest.raises(BudgetError) as error:
        load_bundle(story, memory=least - 1, threads=2)
    assert error.value.least_bytes == least
    replace(capped, cache=tmp_path).run(story, least, memory=least)


# ---------------------------------------------------------------- a model of more than 2 GB

LARGE = Shape(
    layers=32, width=2048, neurons=8192, heads=8, kv_heads=2, head_dim=64, vocab=512,
    context=512, rank=16, predicted=0.03,
)  # fmt: skip


def write_large(path: Path) -> None:
    """An Arcee of 2 GiB of bundles, from one random block: no reader can tell that it repeats."""
    rows = 256
    one = tiny_parts(replace(LARGE, layers=1, neurons=rows))
    rng = np.random.default_rng(0)
    parts = Parts(_large_metadata(one.metadata))
    whole = {"ffn_bundle.weight": b"", "fc2.weight": b"", "fc2.bias": b""}
    for name in ("ffn_bundle.weight", "fc2.weight"):
        whole[name] = one.tensors[f"blk.0.{name}"].data * (LARGE.neurons // rows)
    # About one neuron in eighty is predicted: fc2 fc1 x is about normal.
    whole["fc2.bias"] = rng.normal(-2.5, 0.5, LARGE.neurons).astype(np.float32).tobytes()
    for name, stored in one.tensors.items():
        if not name.startswith("blk.0."):
            parts.tensors[name] = stored
            continue
        part = name.removeprefix("blk.0.")
        for layer in range(LARGE.layers):
            layer_name = f"blk.{layer}.{part}"
            if part in whole:
                shape = (LARGE.neurons, *stored.shape[1:])
                parts.tensors[layer_name] = Stored(shape, stored.type, whole[part])
            else:
                parts.tensors[layer_name] = stored
    parts.metadata["penstock.checksum.tensors"] = np.zeros(len(parts.tensors), np.uint32)
    with open(path, "wb") as handle:
        handle.write(header_of(parts))
        for stored in parts.tensors.values():
            handle.write(padded(parts, stored.data))
        handle.flush()
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _large_metadata(small: dict[str, Any]) -> dict[str, Any]:
    out = dict(small)
    for key, value in small.items():
        if isinstance(value, np.ndarray) and key != "penstock.stats.window":
            out[key] = np.tile(value, LARGE.layers)
    out["arcee.block_count"] = LARGE.layers
    out["arcee.feed_forward_length"] = LARGE.neurons
    tokens = {chr(i): i for i in range(32, 127)}
    out["tokenizer.huggingface.json"] = json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": None,
            "model": {"type": "BPE", "vocab": tokens, "merges": [], "unk_token": None},
        }  # fmt: skip
    )
    return out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 5 * GIB:
        pytest.skip(f"{folder} has less than 5 GiB free")
    path = folder / "large.gguf"
    write_large(path)
    yield path
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("share", [SHARES[0], SHARES[-1]])
def test_a_model_of_over_2_gb_keeps_its_budget(capped: Capped, large: Path, share: float) -> None:
    assert large.stat().st_size > 2 * GIB
    if share == 1.0 and available_memory() < 4 * GIB:
        pytest.skip("not enough memory to hold the whole model")
    budget = ffn_budget(large, share)
    result = capped.run(large, budget, FEW_TOKENS, memory=budget)
    assert result["read"] > 0 or share == 1.0
