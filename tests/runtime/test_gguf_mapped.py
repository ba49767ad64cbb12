"""Where pages cannot be replaced, the gguf engine says so and leaves llama.cpp's mapping alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock
from penstock import _native
from penstock.errors import BudgetError, PenstockError
from penstock.runtime.gguf import self_test
from penstock.runtime.gguf.model import GgufModel
from penstock.runtime.gguf.plan import GgufPlan
from penstock.runtime.gguf.self_test import check, write_dense, write_experts


@pytest.fixture(scope="module", params=["dense", "experts"])
def path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    out = tmp_path_factory.mktemp("mapped") / f"{request.param}.gguf"
    (write_dense if request.param == "dense" else write_experts)(out)
    return out


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without streaming: to try it would be an error."""

    def never(*args: object) -> None:
        raise AssertionError("the mapping was touched")

    monkeypatch.setattr(_native, "address_space_supported", lambda: False)
    monkeypatch.setattr(_native, "WeightStreamer", never)
    monkeypatch.setattr("penstock.loaders.file_mapping.MAPS", Path("/nonexistent"))


def made(path: Path, memory: int | str) -> GgufPlan:
    plan = penstock.plan(path, memory=memory, context=256)
    assert isinstance(plan, GgufPlan)
    return plan


def test_it_runs_in_the_mapping_and_says_so(path: Path, elsewhere: None) -> None:
    plan = made(path, made(path, "1GiB").least)
    assert plan.mode == "mapped"
    assert "cannot be streamed on this system" in plan.note
    assert (plan.pinned, plan.ring, plan.window, plan.streamed) == (0, 0, 0, 0)
    assert (plan.largest_part, plan.share, plan.depth, plan.direct) == (0, 0.0, 0, False)
    assert plan.policy == plan.backend == "none"
    assert plan.read_bytes is None and plan.tokens_per_second is None, "nobody knows"
    assert json.loads(json.dumps(plan.to_dict()))["read_bytes"] is None
    assert plan.total == plan.kv_cache + plan.buffers + plan.tokenizer
    model = penstock.load(path, memory=plan.least, context=256)
    assert isinstance(model, GgufModel)
    assert model.engine.streamer is None
    text = "".join(model.generate("Once upon a time", max_tokens=8, temperature=0.0))
    stats = model.stats()
    assert text and stats.generated == 8 and stats.tokens_per_second > 0 and stats.total > 0
    unknown = {name for name, value in stats.to_dict().items() if value is None}
    assert unknown == {
        "read_bytes", "per_token_bytes", "reads", "hit_rate", "effective_throughput", "storage",
        "compute",
    }  # fmt: skip
    assert "unknown, by the system" in str(stats) and "0 B" not in str(stats)
    assert "hit rate" not in str(stats) and "None" not in str(stats)
    model.close()


def test_the_numbers_are_the_same(path: Path, elsewhere: None) -> None:
    outcome = check(path)
    assert (outcome.mode, outcome.identical, outcome.read_bytes) == ("mapped", True, 0)


def test_what_fits_is_resident_as_everywhere(path: Path, elsewhere: None) -> None:
    plan = made(path, "1GiB")
    assert (plan.mode, plan.note) == ("resident", "")
    assert plan.read_bytes == 0 and plan.tokens_per_second
    assert plan.policy == "adaptive" and plan.backend != "none"


def test_a_budget_need_not_hold_what_streaming_needs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ring, no window, no pinned weights: the system reads them into its own memory."""
    streamed = made(path, "1GiB").least
    monkeypatch.setattr(_native, "address_space_supported", lambda: False)
    plan = made(path, made(path, "1GiB").least)
    assert plan.mode == "mapped" and plan.total <= plan.least < streamed - (1 << 20)
    with pytest.raises(BudgetError) as error:
        made(path, plan.least - 1)
    assert error.value.least_bytes == plan.least


def test_too_little_is_too_little(path: Path, elsewhere: None) -> None:
    with pytest.raises(BudgetError):
        made(path, 1 << 20)


def test_with_streaming_there_is_nothing_to_say(path: Path) -> None:
    if not _native.address_space_supported():
        pytest.skip("this system has no streaming")
    plan = made(path, made(path, "1GiB").least)
    assert plan.mode in ("stream", "experts") and "mapping" not in plan.note
    assert plan.read_bytes and plan.tokens_per_second and plan.depth
    outcome = check(path)
    assert outcome.identical and outcome.difference == 0 and outcome.read_bytes > 0


def test_a_self_test_that_streams_nothing_is_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where logits agree: of a model that is resident twice, they always do."""

    def load(path: Path, **options: Any) -> Any:
        return penstock.load(path, **{**options, "memory": "1GiB"})

    monkeypatch.setattr(self_test, "load", load)
    with pytest.raises(PenstockError, match=r"nothing was read for \d+ tokens .*resident mode"):
        check(path)


def test_the_dense_file_has_the_embedded_models_numbers(tmp_path: Path) -> None:
    from penstock.loaders.bundle import open_bundle
    from penstock.loaders.gguf_file import read_gguf
    from penstock.quant.blocks import FORMATS, decode_rows
    from penstock.runtime.embedded import embedded_model

    write_dense(tmp_path / "dense.gguf")
    bundle, file = open_bundle(embedded_model()), read_gguf(tmp_path / "dense.gguf")
    assert {t.type_name for t in file.tensors.values()} == {"F32"}
    info = bundle.bundles[0]
    raw = np.fromfile(bundle.path, np.uint8, info.nbytes, offset=info.offset)
    neuron = raw.reshape(bundle.neurons, bundle.stride)[7]
    rows = [
        decode_rows(neuron[None, n * bundle.row_bytes : (n + 1) * bundle.row_bytes], form)[0]
        for n, form in ((0, FORMATS[bundle.dtype]), (1, FORMATS[bundle.dtype]))
    ]
    up, down = file.tensors["blk.0.ffn_up.weight"], file.tensors["blk.0.ffn_down.weight"]
    found = [
        np.fromfile(file.path, np.float32, t.nbytes // 4, offset=t.offset).reshape(t.shape)
        for t in (up, down)
    ]
    assert np.array_equal(found[0][7], rows[0])
    assert np.array_equal(found[1][:, 7], rows[1])
    assert "tokenizer.ggml.tokens" in file.metadata
    assert not any(key.startswith("penstock.") for key in file.metadata)
