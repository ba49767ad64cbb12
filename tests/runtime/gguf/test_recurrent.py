"""Recurrent models: what they remember is a state, which cannot be cut back to an earlier token."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

import penstock
from benchmarks.synthetic_gguf import _add, tokenizer
from penstock.errors import StorageError, UnsupportedModelError, UsageError
from penstock.loaders.weight_map import WeightMap
from penstock.runtime.gguf.engine import GgufEngine
from penstock.runtime.gguf.model import GgufModel
from penstock.runtime.gguf.plan import GgufPlan
from penstock.runtime.gguf.planner import GgufOptions, plan_gguf
from penstock.runtime.gguf.sizes import read_sizes
from tests.bundle_builder import profile
from tests.runtime.gguf.plans import Files, Open, Stock, follow, narrow, prompt, weights_of

LAYERS, WIDTH, VOCAB, CONTEXT = 3, 128, 512, 512
INNER, STATE, CONV, RANK = 256, 16, 4, 8


def write_mamba(path: Path) -> Path:
    """A small `mamba` of random weights."""
    sizes = {
        "context_length": CONTEXT, "embedding_length": WIDTH, "feed_forward_length": 0,
        "attention.head_count": 0, "block_count": LAYERS, "ssm.conv_kernel": CONV,
        "ssm.inner_size": INNER, "ssm.state_size": STATE, "ssm.time_step_rank": RANK,
        "attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": VOCAB,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    ones = np.ones(WIDTH, np.float32)

    def drawn(*shape: int) -> Any:
        return rng.normal(0.0, shape[-1] ** -0.5, shape).astype(np.float32)

    tensors = {"token_embd.weight": WIDTH**0.5 * drawn(VOCAB, WIDTH)}
    for n in range(LAYERS):
        at = f"blk.{n}."
        tensors |= {
            f"{at}attn_norm.weight": ones,
            f"{at}ssm_in.weight": drawn(2 * INNER, WIDTH),
            f"{at}ssm_conv1d.weight": drawn(INNER, CONV),
            f"{at}ssm_conv1d.bias": np.zeros(INNER, np.float32),
            f"{at}ssm_x.weight": drawn(RANK + 2 * STATE, INNER),
            f"{at}ssm_dt.weight": drawn(INNER, RANK),
            f"{at}ssm_dt.bias": np.full(INNER, -2.0, np.float32),
            f"{at}ssm_a": -np.tile(np.arange(1, STATE + 1, dtype=np.float32), (INNER, 1)),
            f"{at}ssm_d": np.ones(INNER, np.float32),
            f"{at}ssm_out.weight": drawn(WIDTH, INNER),
        }
    tensors |= {"output_norm.weight": ones, "output.weight": 3 * drawn(VOCAB, WIDTH)}
    writer: Any = GGUFWriter(str(path), "mamba")
    for key, value in ({f"mamba.{k}": v for k, v in sizes.items()} | tokenizer(VOCAB)).items():
        _add(writer, key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_mamba(tmp_path / "m.gguf")


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_it_is_streamed(path: Path, open_engine: Open, share: float) -> None:
    engine = open_engine(path, share)
    with Stock(path, engine.plan) as stock:
        expected = follow(stock.decode, stock.vocab, count=50)
    assert follow(engine.decode, engine.vocab, count=50).differs(expected) == ""


def test_after_a_failed_pass_the_prompt_is_run_from_its_beginning(
    path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, then = path.read_bytes(), os.stat(path)
    model = GgufModel(open_engine(path, 0.25))
    monkeypatch.setattr(model.engine, "check_unchanged", lambda: None)

    def text(**options: Any) -> str:
        return "".join(model.generate("The thing in the water", **{"max_tokens": 12, **options}))

    expected = text()
    assert text() == expected, "nothing of it can be kept, so all of it is run again"
    begun = model.generate("The thing in the water", max_tokens=12)
    next(begun)
    table = model.engine.weights.of("table")[0].info
    os.truncate(path, table.offset + table.nbytes + 4096)
    with pytest.raises(StorageError, match="m.gguf"):
        list(begun)
    assert model.engine.length == 0, "a state that is half of one token and half of the next"
    path.write_bytes(whole)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert text() == expected


# ---------------------------------------------------------------- budgets


@pytest.mark.usefixtures("measured")
def test_the_state_is_in_the_budget(path: Path) -> None:
    plan = penstock.plan(path, memory="1GiB")
    assert isinstance(plan, GgufPlan)
    assert plan.state == 4 * LAYERS * ((CONV - 1) * INNER + STATE * INNER), "as llama.cpp tells"
    without = sum((plan.pinned, plan.kv_cache, plan.buffers, plan.tokenizer, plan.ring))
    assert plan.total == without + plan.state and plan.kv_cache == 0


RULES: dict[str, tuple[dict[str, int], int]] = {
    "groups": ({"ssm.conv_kernel": 4, "ssm.inner_size": 512, "ssm.state_size": 64,
                "ssm.group_count": 2}, 3 * (512 + 2 * 2 * 64) + 64 * 512),
    "rwkv": ({"wkv.head_size": 64}, (64 + 2) * 256),
    "rwkv, qwen": ({"wkv.head_size": 64, "token_shift_count": 1}, (64 + 1) * 256),
    "lfm2": ({"shortconv.l_cache": 3}, 2 * 256),
    "kimi": ({"ssm.conv_kernel": 4, "kda.head_dim": 128}, (3 * 3 + 128) * 4 * 128),
    "none": ({}, 0),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_each_kind_of_state_is_counted(files: Files, rule: str) -> None:
    """llama.cpp's own rules, of its llama_hparams."""
    keys, elements = RULES[rule]
    sizes = read_sizes(with_keys(weights_of(files("tiny-llama")), **keys))
    assert sizes.state == 4 * sizes.layers * elements
    assert (sizes.inner > 0) == bool(elements)


def with_keys(weights: WeightMap, **keys: int) -> WeightMap:
    (file,) = weights.files
    added = {f"llama.{key}": value for key, value in keys.items()}
    return replace(weights, files=(replace(file, metadata={**file.metadata, **added}),))


def test_what_cannot_be_counted_has_no_budget(files: Files, open_engine: Open, path: Path) -> None:
    unknown = with_keys(weights_of(files("tiny-llama")), **{"ssm.new_kind": 7})
    with pytest.raises(UnsupportedModelError, match="keys do not tell how large"):
        plan_gguf(unknown, profile(), GgufOptions(memory=1 << 30))
    assert plan_gguf(unknown, profile(), GgufOptions()).state == 0
    weights = weights_of(path)  # recurrent by its architecture alone
    plan = replace(narrow(weights, 0.5), state=0)
    with pytest.raises(UnsupportedModelError, match="'mamba' has recurrent layers"):
        GgufEngine(weights, plan)
    GgufEngine(weights, replace(plan, budget=None)).close()


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("make", [lambda folder: None, write_mamba], ids=["cache", "state"])
def test_no_more_tokens_are_kept_than_there_are(
    make: Callable[[Path], Path | None], files: Files, open_engine: Open, tmp_path: Path
) -> None:
    engine = open_engine(make(tmp_path / "m.gguf") or files("tiny-llama"))
    for held in (0, 20):
        engine.decode(prompt(engine.vocab, held)) if held else None
        with pytest.raises(UsageError, match=f"of {held} tokens, {held + 1} cannot be kept"):
            engine.truncate(held + 1)
        engine.truncate(held)
        assert engine.length == held
