"""Text in, text out, with weights that come and go: prompts, chats, stops, seeds, the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gguf_shapes import SHAPES
from penstock.errors import ContextError, UsageError
from penstock.runtime.chat_template import ChatTemplate, ChatTemplateError
from penstock.runtime.gguf.model import GgufModel
from penstock.runtime.language_model import LanguageModel
from penstock.runtime.sampling import SamplingParams
from tests.runtime.gguf.plans import Files, Open, Stock

PROMPT = "The thing in the water"
Load = Callable[..., GgufModel]


@pytest.fixture(params=["tiny-llama", "tiny-olmoe"])
def path(request: pytest.FixtureRequest, files: Files) -> Path:
    return files(request.param)


@pytest.fixture
def load(open_engine: Open, path: Path) -> Load:
    return lambda share=0.3, **plan: GgufModel(open_engine(path, share, **plan))


@pytest.fixture
def model(load: Load) -> GgufModel:
    return load()


def text(model: GgufModel, prompt: str = PROMPT, **options: object) -> str:
    return "".join(model.generate(prompt, **{"max_tokens": 24, **options}))  # type: ignore[arg-type]


# ---------------------------------------------------------------- what comes out


def test_greedy_text_is_that_of_stock_llama_cpp(model: GgufModel, path: Path) -> None:
    as_model: LanguageModel = model
    pieces = list(as_model.generate(PROMPT, max_tokens=40))
    ids = model.tokenize(PROMPT, add_special=True)
    assert model.prompt_tokens == len(ids) and model.context_tokens == 512
    raw = b""
    with Stock(path, model.plan) as stock:
        logits = stock.decode(ids)
        for _ in range(40):
            token = int(logits.argmax())
            raw += model.piece(token)
            logits = stock.decode([token])
    assert "".join(pieces) == raw.decode("utf-8", "replace")
    assert model.finish_reason == "length" and model.completion_tokens == 40
    stats = model.stats()
    assert (stats.tokens, stats.generated, stats.decoded) == (len(ids) + 39, 40, 39)
    assert stats.read_bytes and stats.per_token_bytes and stats.reads
    assert stats.hit_rate is not None and 0 <= stats.hit_rate <= 1
    assert stats.storage is not None and stats.storage <= stats.total
    assert "read from storage" in str(stats) and stats.to_dict()["generated"] == 40
    model.reset_stats()
    assert model.stats().tokens == model.stats().read_bytes == 0


@pytest.mark.parametrize("options", [{}, {"top_k": 20, "top_p": 0.9, "min_p": 0.01}])
def test_a_seed_gives_the_same_text_again(load: Load, options: dict[str, Any]) -> None:
    first, second = load(), load(0.8)
    drawn = text(first, temperature=0.9, seed=5, **options)
    assert text(first, temperature=0.9, seed=5, **options) == drawn, "the same model again"
    assert text(second, temperature=0.9, seed=5, **options) == drawn, "more of it in memory"
    assert text(first, temperature=0.9, seed=6, **options) != drawn
    assert len({text(first, temperature=0.9, **options) for _ in range(4)}) > 1, "no seed"


def test_penalties_change_what_is_repeated(model: GgufModel) -> None:
    plain = text(model, max_tokens=60)
    assert text(model, max_tokens=60, repetition_penalty=1.0, repetition_window=8) == plain
    assert text(model, max_tokens=60, repetition_penalty=5.0) != plain


def test_stop_strings_end_the_text_and_are_not_in_it(model: GgufModel) -> None:
    whole = text(model, max_tokens=40)
    stop = whole[12:15]
    cut = text(model, max_tokens=40, stop=(stop,))
    assert cut == whole[: whole.index(stop)]
    assert model.finish_reason == "stop" and model.completion_tokens < 40
    assert text(model, max_tokens=40, stop=("not in it",)) == whole


def test_options_are_fields_or_sampling_params(model: GgufModel) -> None:
    given = SamplingParams(max_tokens=8, temperature=0.5, seed=1)
    expected = text(model, max_tokens=8, temperature=0.5, seed=1)
    assert "".join(model.generate(PROMPT, sampling=given)) == expected
    with pytest.raises(UsageError, match="not both"):
        model.generate(PROMPT, sampling=given, temperature=0.5)
    with pytest.raises(UsageError, match="unknown generation option"):
        model.generate(PROMPT, warmth=0.5)


def test_an_empty_prompt_begins_at_the_start_token(model: GgufModel) -> None:
    assert text(model, "") and model.prompt_tokens == 1


def test_any_text_is_tokenized_and_comes_back(model: GgufModel) -> None:
    for sample in ("plain", "über 日本 \n\t🦊", "<|im_end|> as text", "\0"):
        ids = model.tokenize(sample, add_special=False)
        assert b"".join(model.piece(i) for i in ids).decode() == sample
    assert model.tokenize("<|im_end|>", add_special=False, parse_special=True) == [3]
    assert len(model.tokenize("<|im_end|>", add_special=False)) > 1


# ---------------------------------------------------------------- chats


def test_a_chat_is_the_template_of_the_file(model: GgufModel) -> None:
    turns = [{"role": "user", "content": "Tell me"}, {"role": "assistant", "content": "What"}]
    turns.append({"role": "user", "content": "More"})
    answer = "".join(model.chat(turns, max_tokens=16))
    rendered = (
        "<|im_start|>user\nTell me<|im_end|>\n<|im_start|>assistant\nWhat<|im_end|>\n"
        "<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = model.tokenize(rendered, add_special=True, parse_special=True)
    assert ids[0] == 0 and ids.count(2) == 4 and ids.count(3) == 3, "control tokens, not text"
    assert model.prompt_tokens == len(ids)
    model.reset()
    assert "".join(model._stream(ids, SamplingParams(max_tokens=16), None)) == answer


def test_only_the_new_part_of_a_conversation_is_run(load: Load) -> None:
    model, fresh = load(), load()
    turns = [{"role": "user", "content": "A rather long beginning of it all"}]
    answer = "".join(model.chat(turns, max_tokens=12))
    first = model.prompt_tokens
    assert model.stats().tokens == first + 11
    turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And then"}]
    model.reset_stats()
    second = "".join(model.chat(turns, max_tokens=1))
    added = model.prompt_tokens - first
    # The answer's tokens may be cut otherwise when they are read back as text.
    assert added - 12 <= model.stats().tokens <= added + 1
    assert "".join(fresh.chat(turns, max_tokens=1)) == second
    model.reset_stats()
    assert "".join(model.chat(turns, max_tokens=1)) == second
    assert model.stats().tokens == 1, "the last token again, for its logits"
    model.reset()
    model.reset_stats()
    assert "".join(model.chat(turns, max_tokens=1)) == second
    assert model.stats().tokens == model.prompt_tokens, "all of it, after a reset"


def test_another_prompt_leaves_nothing_of_the_one_before(load: Load) -> None:
    model, fresh = load(), load()
    text(model, "The thing in the sea", max_tokens=30)
    assert text(model, "The thing on the hill") == text(fresh, "The thing on the hill")


# ---------------------------------------------------------------- ends


def after(count: int) -> Callable[[], bool]:
    """Cancelled when it was asked this often."""
    asked = iter(range(count))
    return lambda: next(asked, None) is None


def test_a_generation_is_cancelled_between_tokens(model: GgufModel) -> None:
    whole = text(model)
    cut = text(model, cancelled=after(1 + 5))
    assert whole.startswith(cut) and cut != whole
    assert model.finish_reason == "cancelled" and model.completion_tokens == 5
    assert text(model) == whole


def test_a_long_prompt_is_cancelled_between_batches(model: GgufModel) -> None:
    long = "over and under " * 25
    whole = text(model, long)
    batches = -(-model.prompt_tokens // model.plan.batch)
    assert batches > 2
    model.reset()
    model.reset_stats()
    assert text(model, long, cancelled=after(2)) == ""
    assert model.finish_reason == "cancelled" and model.completion_tokens == 0
    assert model.stats().tokens == 2 * model.plan.batch
    assert text(model, long) == whole
    assert model.stats().tokens == model.prompt_tokens + 23, "what was run is not run again"


def test_a_full_context_ends_the_text(model: GgufModel) -> None:
    text(model, max_tokens=1000)
    assert model.finish_reason == "context"
    # The last token needs no place: nothing follows it.
    assert model.prompt_tokens + model.completion_tokens == model.context_tokens + 1
    assert model.engine.length == model.context_tokens


def test_a_prompt_that_fills_the_context_is_refused(model: GgufModel) -> None:
    with pytest.raises(UsageError, match=r"has \d+ tokens, the context is 512; shorten it"):
        text(model, "z" * 600)
    assert model.prompt_tokens > 512 and model.completion_tokens == 0
    assert text(model)


def test_what_a_template_refuses_is_not_counted(model: GgufModel) -> None:
    with pytest.raises(ContextError):
        list(model.generate("z" * 600))
    assert model.prompt_tokens > model.context_tokens
    model._template = ChatTemplate("{{ raise_exception('not so') }}")
    with pytest.raises(ChatTemplateError, match="not so"):
        model.chat([{"role": "user", "content": "x"}])
    assert model.prompt_tokens == model.completion_tokens == 0


def test_a_second_generation_ends_the_first(model: GgufModel) -> None:
    first = iter_of(model)
    next(first)
    assert text(model)
    with pytest.raises(UsageError, match="another generation has started"):
        list(first)
    assert text(model)


def test_a_dropped_generation_leaves_the_model_usable(model: GgufModel) -> None:
    whole = text(model)
    dropped = iter_of(model)
    next(dropped)
    del dropped
    assert text(model) == whole


def iter_of(model: GgufModel) -> Iterator[str]:
    return iter(model.generate(PROMPT, max_tokens=24))


def test_a_model_without_a_template_gets_the_plain_one(open_engine: Open, tmp_path: Path) -> None:
    from benchmarks import synthetic_gguf

    whole = synthetic_gguf.write_gguf(SHAPES["tiny-llama"], tmp_path / "m.gguf")[0].read_bytes()
    cut = whole.replace(b"tokenizer.chat_template", b"tokenizer.chat_tompkate")
    (tmp_path / "cut.gguf").write_bytes(cut)
    model = GgufModel(open_engine(tmp_path / "cut.gguf"))
    assert "".join(model.chat([{"role": "user", "content": "x"}], max_tokens=8))
