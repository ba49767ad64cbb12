"""Generation through one context: what is kept, what is refused."""

from __future__ import annotations

import pytest

import penstock
from penstock.errors import ContextError, UsageError
from penstock.runtime.chat_template import ChatTemplate, ChatTemplateError
from penstock.runtime.embedded import embedded_model
from penstock.runtime.flash_engine import FlashEngine
from penstock.runtime.flash_model import FlashModel
from penstock.runtime.language_model import LanguageModel
from penstock.runtime.load import load_bundle
from penstock.runtime.run_stats import Snapshot

PROMPT = "Once upon a time there was a king who"
OTHER = "The old woman took the golden ring and"


@pytest.fixture
def model() -> FlashModel:
    return load_bundle(embedded_model(), dense=True, context=256)


def test_a_generation_that_another_one_replaced_is_refused(model: FlashModel) -> None:
    first = model.generate(PROMPT, max_tokens=16)
    next(first)
    fresh = "".join(load_bundle(embedded_model(), dense=True).generate(OTHER, max_tokens=12))
    assert "".join(model.generate(OTHER, max_tokens=12)) == fresh
    with pytest.raises(UsageError, match="another generation has started"):
        next(first)
    assert "".join(model.generate(OTHER, max_tokens=12)) == fresh


def test_an_earlier_turn_is_kept_and_gives_the_same_text(model: FlashModel) -> None:
    text = "".join(model.generate(PROMPT, max_tokens=20))
    model.reset_stats()
    again = "".join(model.generate(PROMPT + text[:10], max_tokens=8))
    fresh = load_bundle(embedded_model(), dense=True, context=256)
    assert "".join(fresh.generate(PROMPT + text[:10], max_tokens=8)) == again
    assert model.stats().tokens < fresh.stats().tokens  # the shared beginning was not run again


def test_generation_is_told_apart_from_prompts() -> None:
    def run(tokens: int) -> FlashModel:
        model = load_bundle(embedded_model(), ffn_resident=0.5)
        assert len(list(model.generate(PROMPT, max_tokens=tokens))) <= tokens
        return model

    prompt, whole = run(1).stats(), run(9).stats()
    assert prompt.read_bytes > 0  # a prompt streams every layer
    assert prompt.per_token_bytes == prompt.tokens_per_second == 0.0
    assert whole.per_token_bytes == (whole.read_bytes - prompt.read_bytes) / 8
    assert 8 / whole.tokens_per_second < whole.total


@pytest.mark.parametrize("tokens", [1, 12])
def test_as_many_tokens_are_generated_as_were_asked_for(model: FlashModel, tokens: int) -> None:
    list(model.generate(PROMPT, max_tokens=tokens))
    stats = model.stats()
    assert model.finish_reason == "length"
    assert (stats.generated, stats.decoded) == (tokens, tokens - 1)  # the first is the prompt's
    prompt = len(model.tokenizer.encode(PROMPT))
    assert str(stats).startswith(f"tokens            {prompt} of prompts, {tokens} generated, ")
    model.reset_stats()
    assert (model.stats().generated, model.stats().decoded) == (0, 0)


def test_a_generation_that_is_dropped_halfway_is_counted(model: FlashModel) -> None:
    pieces = model.generate(PROMPT, max_tokens=64)
    next(pieces)
    model.reset_stats()  # in its middle
    for _ in range(4):
        next(pieces)
    del pieces
    assert model.stats().decoded == model.stats().tokens >= 4


def test_the_native_counters_are_not_read_for_each_token(
    model: FlashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    def count(engine: FlashEngine) -> Snapshot:
        nonlocal read
        read += 1
        return Snapshot()

    monkeypatch.setattr(Snapshot, "of", count)
    list(model.generate(PROMPT, max_tokens=16))
    assert read == 2


@pytest.mark.parametrize("threads", [0, -1, 257, 100_000])
def test_absurd_threads_are_refused(threads: int) -> None:
    if threads == 0:  # means: choose
        assert penstock.plan(embedded_model(), threads=threads).threads >= 1
        return
    with pytest.raises(UsageError, match="expected 1 to 256"):
        load_bundle(embedded_model(), threads=threads)


def test_exact_and_dense_together_are_refused() -> None:
    with pytest.raises(UsageError, match="ask for one"):
        load_bundle(embedded_model(), exact=True, dense=True)


def test_an_unknown_option_is_refused(model: FlashModel) -> None:
    with pytest.raises(UsageError, match="unknown generation option"):
        list(model.generate(PROMPT, tmperature=1))


def test_it_is_what_commands_and_servers_are_written_against(model: FlashModel) -> None:
    general: LanguageModel = model  # mypy checks it
    assert "".join(general.generate(PROMPT, max_tokens=4))
    assert general.prompt_tokens == len(model.tokenizer.encode(PROMPT))
    assert (general.completion_tokens, general.finish_reason) == (4, "length")
    assert general.context_tokens == 256
    assert general.stats().generated == 4


def test_counts_are_of_the_last_generation(model: FlashModel) -> None:
    text = "".join(model.generate(PROMPT, max_tokens=12))
    list(model.generate(OTHER, max_tokens=12, stop=(text[:1],)))
    assert model.prompt_tokens == len(model.tokenizer.encode(OTHER))
    assert 1 <= model.completion_tokens <= 12
    with pytest.raises(UsageError, match="the context is 256"):
        list(model.generate(PROMPT * 60))
    assert model.prompt_tokens > model.context_tokens
    assert model.completion_tokens == 0


def test_what_a_template_refuses_is_not_counted(model: FlashModel) -> None:
    with pytest.raises(ContextError):
        list(model.generate(PROMPT * 60))
    assert model.prompt_tokens > model.context_tokens
    model._template = ChatTemplate("{{ raise_exception('not so') }}")
    with pytest.raises(ChatTemplateError, match="not so"):
        model.chat([{"role": "user", "content": "x"}])
    assert model.prompt_tokens == model.completion_tokens == 0


def test_a_cancelled_generation_ends_before_the_next_token(model: FlashModel) -> None:
    pieces: list[str] = []
    for piece in model.generate(PROMPT, max_tokens=64, cancelled=lambda: len(pieces) == 3):
        pieces.append(piece)
    assert len(pieces) == 3
    assert model.finish_reason == "cancelled"
    assert model.stats().decoded <= 4


@pytest.fixture
def long_prompt() -> str:
    return " ".join([PROMPT] * 42)


@pytest.fixture
def roomy() -> FlashModel:
    return load_bundle(embedded_model(), dense=True)


def test_a_long_prompt_is_cancelled_between_its_batches(
    roomy: FlashModel, long_prompt: str
) -> None:
    length, batch = len(roomy.tokenizer.encode(long_prompt)), roomy.plan.batch
    assert length > 3 * batch
    asked = 0

    def after_two() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    assert list(roomy.generate(long_prompt, cancelled=after_two)) == []
    assert (roomy.finish_reason, roomy.completion_tokens) == ("cancelled", 0)
    assert roomy.stats().tokens == 2 * batch
    text = "".join(roomy.generate(long_prompt, max_tokens=8))
    assert roomy.stats().tokens == length + 7  # it went on where it stopped
    roomy.reset()
    assert "".join(roomy.generate(long_prompt, max_tokens=8)) == text


def test_batches_of_a_prompt_give_the_same_text(roomy: FlashModel, long_prompt: str) -> None:
    whole = "".join(roomy.generate(long_prompt, max_tokens=8))
    roomy.reset()
    batches = "".join(roomy.generate(long_prompt, max_tokens=8, cancelled=lambda: False))
    assert batches == whole
