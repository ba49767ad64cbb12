"""Exact mode gives what dense evaluation gives, to the last bit, wherever the weights are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import StorageError
from penstock.loaders.bundle import Bundle, open_bundle
from penstock.runtime.flash_engine import FlashEngine
from penstock.runtime.load import load
from penstock.runtime.plan import LayerPlan
from penstock.runtime.planner import PlanOptions, make_plan
from penstock.runtime.tokenizer import Tokenizer
from tests.bundle_builder import Shape, profile, write_tiny

Floats = NDArray[np.float32]
CONTEXT = 96
PROMPT = np.random.default_rng(3).integers(0, 80, 21).astype(np.int32)
NEXT = np.random.default_rng(4).integers(0, 80, 24).astype(np.int32)
SHAPES = {
    "arcee-F16": Shape(neurons=384, layers=3, context=CONTEXT),
    "opt-Q8_0": Shape("opt", "Q8_0", "relu", neurons=384, kv_heads=4, context=CONTEXT),
    "llama-Q4_0": Shape("llama", "Q4_0", "relu", True, width=96, neurons=352, context=CONTEXT),
    "llama-drelu-F16": Shape("llama", "F16", "drelu", True, neurons=200, context=CONTEXT),
    # Down rows that do not start on a block boundary, and bundles of more than one block.
    "nemotron-F16": Shape("nemotron", width=160, neurons=321, layers=1, context=CONTEXT),
}


@pytest.fixture(scope="module", params=SHAPES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("exact") / f"{request.param}.gguf"
    return open_bundle(write_tiny(path, SHAPES[request.param]))


@pytest.fixture(scope="module")
def dense(bundle: Bundle) -> Floats:
    return run(engine_with(bundle, "resident", bundle.neurons))


def engine_with(
    bundle: Bundle,
    residency: str,
    rows: int | list[int],
    *,
    threads: int = 1,
    backend: str = "threads",
    direct: bool = True,
    merge_gap: int = 0,
    window_tokens: int = 0,
    batch: int = 8,
    overlap: bool = True,
) -> FlashEngine:
    """An engine whose every layer has this residency and this many rows of memory."""
    device = profile(direct=direct, backend=backend, merge_gap=merge_gap)
    options = PlanOptions(mode="exact", context=CONTEXT, batch=batch, threads=threads, ffn_share=0)
    plan = make_plan(bundle, device, options)
    each = rows if isinstance(rows, list) else [rows] * bundle.layers
    layers = tuple(
        LayerPlan(i, residency, each[i], each[i] / bundle.neurons, 0, False, 0.0)
        for i in range(bundle.layers)
    )
    plan = replace(plan, layers=layers, merge_gap=merge_gap, window_tokens=window_tokens)
    return FlashEngine(bundle, plan, overlap=overlap)


def run(engine: FlashEngine) -> Floats:
    """Logits of a prompt, of its continuation, and of a second prompt over it."""
    every = [engine.prefill(PROMPT, 0)]
    every += [engine.decode(int(token)) for token in NEXT]
    every.append(engine.prefill(PROMPT[:5]))
    every += [engine.decode(int(token)) for token in NEXT[:4]]
    return np.stack(every)


@pytest.mark.parametrize("backend", ["threads", "io_uring"])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 1.0])
def test_exact_is_dense_bit_for_bit(
    bundle: Bundle, dense: Floats, share: float, direct: bool, backend: str
) -> None:
    """Also where the window is smaller than a token's active set: the rest overflows."""
    rows = int(share * bundle.neurons)
    try:
        engine = engine_with(bundle, "exact", rows, direct=direct, backend=backend)
    except StorageError as error:
        if "io_uring is not available" in str(error):
            pytest.skip(str(error))
        raise
    assert engine.decoder.direct == direct and engine.decoder.backend == backend
    assert np.array_equal(run(engine), dense)
    stats = [engine.decoder.ffn_stats(i) for i in range(bundle.layers)]
    if share in (0.02, 1.0):
        assert all((s.overflow > 0) == (share < 1) for s in stats)
    assert all(0 < s.active for s in stats)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("residency, share", [("exact", 0.2), ("stream", 0.3), ("resident", 1.0)])
def test_any_number_of_threads_gives_the_same_bits(
    bundle: Bundle, dense: Floats, residency: str, share: float, threads: int
) -> None:
    engine = engine_with(bundle, residency, int(share * bundle.neurons), threads=threads)
    assert np.array_equal(run(engine), dense)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.77])
def test_streamed_layers_are_dense_bit_for_bit(bundle: Bundle, dense: Floats, share: float) -> None:
    engine = engine_with(bundle, "stream", int(share * bundle.neurons))
    assert np.array_equal(run(engine), dense)


@pytest.mark.parametrize(
    "options",
    [
        {"merge_gap": 4096},
        {"merge_gap": 1 << 20},
        {"window_tokens": 1},
        {"window_tokens": 3},
        {"batch": 1},
        {"batch": 64},
        {"overlap": False},
    ],
    ids=str,
)
def test_settings_that_only_change_reading_change_no_bit(
    bundle: Bundle, dense: Floats, options: dict[str, int]
) -> None:
    rows = [bundle.neurons // 3, bundle.neurons // 50, bundle.neurons][: bundle.layers]
    engine = engine_with(bundle, "exact", rows, **options)  # type: ignore[arg-type]
    assert np.array_equal(run(engine), dense)


def test_reset_forgets_everything(bundle: Bundle, dense: Floats) -> None:
    engine = engine_with(bundle, "exact", bundle.neurons // 4)
    run(engine)
    engine.reset()
    assert np.array_equal(run(engine), dense)


def test_prompts_seed_the_window(bundle: Bundle) -> None:
    """The first generated token finds neurons of the prompt's last tokens in memory."""
    engine = engine_with(bundle, "exact", bundle.neurons)
    engine.prefill(PROMPT, 0)
    engine.decode(int(NEXT[0]))
    for layer in range(bundle.layers):
        stats = engine.decoder.ffn_stats(layer)
        assert stats.hits > stats.misses


# ---------------------------------------------------------------- whole texts

OPENINGS = [
    "Once upon a time", "There was once a king who", "The old woman said", "In a far land",
    "A poor woodcutter had", "The princess looked", "Long ago, when", "\"Where are you going?\"",
    "Deep in the forest", "The youngest son", "At midnight", "The wolf", "When the queen heard",
    "He took the golden", "They lived in", "Now the giant", "One morning the", "As for the fox",
    "The witch had", "And so",
]  # fmt: skip


@pytest.fixture(scope="module")
def story_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The embedded model, or one made of the start model."""
    embedded = Path(__file__).resolve().parents[2] / "runtime" / "data" / "storyteller.gguf"
    if embedded.is_file():
        yield embedded
        return
    pytest.importorskip("torch")
    from penstock.export.llm import export_llm

    shared: Path = request.getfixturevalue("shared_dir")
    path = tmp_path_factory.mktemp("story") / "start.gguf"
    export_llm(shared / "models" / "storyteller-start", path, calibrate=False, evaluate=False)
    yield path


@pytest.mark.slow
def test_greedy_texts_of_exact_are_those_of_dense(story_model: Path) -> None:
    """256 tokens on 20 prompts in .ci/run, else on five of them. Dense evaluation of exact's own
    text, all at once: where each next token is the best one, by induction the greedy text of dense
    is the same."""
    assert len(OPENINGS) == 20
    step = len(OPENINGS) // int(os.environ.get("PENSTOCK_PROMPTS", "5"))
    bundle = open_bundle(story_model)
    tokenizer = Tokenizer(bundle.file.metadata)
    device = profile(depth=16)
    engines = [
        FlashEngine(bundle, make_plan(bundle, device, options))
        for options in (
            PlanOptions(mode="exact", ffn_share=0.8, context=320, threads=1),
            PlanOptions(mode="dense", ffn_share=1.0, context=320, batch=256, threads=1),
        )
    ]
    exact, dense = engines
    distinct: set[int] = set()
    for opening in OPENINGS[::step]:
        prompt = tokenizer.encode(opening)
        tokens = np.array(prompt, np.int32)
        exact.reset()
        logits = [exact.prefill(tokens)]
        while len(logits) < 256:
            logits.append(exact.decode(int(logits[-1].argmax())))
        text = np.stack(logits).argmax(axis=1).astype(np.int32)
        dense.reset()
        every = dense.prefill(np.concatenate([tokens, text[:-1]]), all_logits=True)
        assert np.array_equal(every[len(prompt) - 1 :].argmax(axis=1), text)
        assert np.array_equal(every[len(prompt) - 1 :], np.stack(logits))
        distinct |= set(text.tolist())
    assert len(distinct) > 50  # small models fall into loops, but not all into one
    assert exact.decoder.stats().io_bytes > 0
    assert sum(exact.decoder.ffn_stats(i).misses for i in range(bundle.layers)) > 10_000


def test_generate_gives_the_same_text_in_both_modes(story_model: Path) -> None:
    dense = load(story_model, dense=True, ffn_resident=1.0, context=128)
    exact = load(story_model, exact=True, ffn_resident=0.6, context=128)
    expected = "".join(dense.generate(OPENINGS[0], max_tokens=48))
    assert "".join(exact.generate(OPENINGS[0], max_tokens=48)) == expected
    assert len(expected) > 60
