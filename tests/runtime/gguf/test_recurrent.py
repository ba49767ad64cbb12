"""Recurrent models: what they remember is a state, which cannot be cut back to an earlier token."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from benchmarks.synthetic_gguf import _add, tokenizer
from penstock.errors import StorageError, UsageError
from penstock.runtime.gguf.model import GgufModel
from tests.runtime.gguf.plans import Open, Stock, follow, prompt

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


@pytest.mark.parametrize("make", [lambda folder: None, write_mamba], ids=["cache", "state"])
def test_no_more_tokens_are_kept_than_there_are(
    make: Callable[[Path], Path | None], files: Any, open_engine: Open, tmp_path: Path
) -> None:
    engine = open_engine(make(tmp_path / "m.gguf") or files("tiny-llama"))
    for held in (0, 20):
        engine.decode(prompt(engine.vocab, held)) if held else None
        with pytest.raises(UsageError, match=f"of {held} tokens, {held + 1} cannot be kept"):
            engine.truncate(held + 1)
        engine.truncate(held)
        assert engine.length == held
