"""Recording routers: the trace says what an unmodified llama.cpp chooses, pass by pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import penstock
from penstock.errors import StorageError, UsageError
from penstock.loaders.expert_trace import read_trace
from penstock.runtime.embedded import embedded_model
from penstock.runtime.gguf.model import GgufModel
from penstock.runtime.gguf.self_test import EXPERTS, LAYERS, USED, write_dense, write_experts

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = tmp_path_factory.mktemp("experts") / "experts.gguf"
    write_experts(path)
    return path


@pytest.fixture
def streamed(experts: Path) -> Iterator[GgufModel]:
    least = penstock.plan(experts, context=256, kv_type="f16").least
    model = penstock.load(experts, memory=least, context=256, kv_type="f16")
    assert isinstance(model, GgufModel) and model.plan.mode == "experts"
    yield model
    model.close()


def test_the_trace_is_what_llama_chooses(
    streamed: GgufModel, experts: Path, tmp_path: Path
) -> None:
    from benchmarks.gguf_routing import Model

    with streamed.record_trace(tmp_path / "t"):
        "".join(streamed.generate(PROMPT, max_tokens=20, temperature=0.0))
    trace = read_trace(tmp_path / "t")
    assert (trace.model, trace.arch, trace.used) == ("experts.gguf", "llama", USED)
    assert (trace.layers, trace.experts) == (LAYERS, EXPERTS)
    assert trace.prompt.tolist() == [1] + [0] * 19  # the last token is not run
    prompt = streamed.tokenize(PROMPT, add_special=True)
    with Model(experts) as reference:
        chosen = reference.decode([*prompt, *streamed._cached[len(prompt) :]]).experts
    ids, offsets = trace.steps()
    for token in range(19):
        for layer in range(LAYERS):
            step = token * LAYERS + layer
            got = ids[offsets[step] : offsets[step + 1]] - layer * EXPERTS
            assert got.tolist() == sorted(chosen[layer][len(prompt) + token].tolist())
    together = {e for row in chosen[0][: len(prompt)].tolist() for e in row}
    assert trace.ids[: trace.counts[0, 0]].tolist() == sorted(together)


def test_only_what_runs_inside_is_recorded(streamed: GgufModel, tmp_path: Path) -> None:
    "".join(streamed.generate(PROMPT, max_tokens=4))
    for name in ("a", "b"):
        streamed.reset()
        with streamed.record_trace(tmp_path / name):
            "".join(streamed.generate(PROMPT, max_tokens=3, temperature=0.0))
    "".join(streamed.generate(PROMPT, max_tokens=4))
    assert [read_trace(tmp_path / name).tokens for name in ("a", "b")] == [2, 2]


def test_an_error_inside_writes_nothing(streamed: GgufModel, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), streamed.record_trace(tmp_path / "t"):
        next(iter(streamed.generate(PROMPT, max_tokens=4)))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    streamed.reset()
    with streamed.record_trace(tmp_path / "t"):  # and can be done again
        "".join(streamed.generate(PROMPT, max_tokens=4))
    assert read_trace(tmp_path / "t").tokens == 3


def test_a_closed_model_still_writes(streamed: GgufModel, tmp_path: Path) -> None:
    with streamed.record_trace(tmp_path / "t"):
        "".join(streamed.generate(PROMPT, max_tokens=4))
        streamed.close()
    assert read_trace(tmp_path / "t").tokens == 3


def test_one_recording_at_a_time(streamed: GgufModel, tmp_path: Path) -> None:
    with streamed.record_trace(tmp_path / "a"):
        with (
            pytest.raises(UsageError, match="being recorded already"),
            streamed.record_trace(tmp_path / "b"),
        ):
            pass
        "".join(streamed.generate(PROMPT, max_tokens=4))
    assert read_trace(tmp_path / "a").tokens == 3


def test_a_file_that_cannot_be_written_is_known_before_the_run(
    streamed: GgufModel, tmp_path: Path
) -> None:
    with (
        pytest.raises(StorageError, match="cannot be written"),
        streamed.record_trace(tmp_path / "missing" / "t"),
    ):
        pytest.fail("the run began")


def test_resident_experts_are_not_watched(experts: Path, tmp_path: Path) -> None:
    model = penstock.load(experts, memory="1GiB", context=256)
    with (
        pytest.raises(UsageError, match="its experts are not streamed"),
        model.record_trace(tmp_path / "t"),
    ):
        pytest.fail("the run began")


def test_a_dense_model_has_no_routers(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    write_dense(tmp_path / "dense.gguf")
    least = penstock.plan(tmp_path / "dense.gguf", context=256).least
    model = penstock.load(tmp_path / "dense.gguf", memory=least, context=256)
    with (
        pytest.raises(UsageError, match="has no experts"),
        model.record_trace(tmp_path / "t"),
    ):
        pytest.fail("the run began")


def test_a_bundle_has_no_routers(tmp_path: Path) -> None:
    model = penstock.load(embedded_model(), memory="64MiB")
    with (
        pytest.raises(UsageError, match="Penstock bundle"),
        model.record_trace(tmp_path / "t"),
    ):
        pytest.fail("the run began")
    assert list(tmp_path.iterdir()) == []
