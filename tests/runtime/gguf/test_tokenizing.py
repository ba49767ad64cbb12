"""No text ends the process: long words get a stack for them, what is longer still is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

from benchmarks.synthetic_gguf import _add, tokenizer
from penstock.errors import ContextError, UsageError
from penstock.loaders.gguf_file import read_gguf
from penstock.loaders.vocabulary import measure_vocabulary
from penstock.runtime.gguf import tokenizing
from penstock.runtime.gguf.library import llama
from penstock.runtime.gguf.tokenizing import MOST_CHARS, GgufTokenizer, longest_line

CONTEXT = 1 << 20
Encode = Callable[..., list[int]]


@pytest.fixture
def vocabulary(llama_cpp: None, tmp_path: Path) -> Iterator[Callable[..., Encode]]:
    """The tokenizer of a file that has nothing else."""
    lib, models = llama(), list[Any]()

    def load(pre: str = "gpt-4o", model: str = "gpt2", context: int = CONTEXT) -> Encode:
        path = tmp_path / "vocabulary.gguf"
        writer = GGUFWriter(path, "llama")
        keys = {**tokenizer(512), "tokenizer.ggml.pre": pre}
        for key, value in keys.items():
            _add(writer, key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        models.append(lib.llama_model_load_from_file(str(path).encode(), params))
        assert models[-1]
        known = replace(measure_vocabulary(read_gguf(path)), kind=model)
        made, handle = GgufTokenizer(lib, known, context), lib.llama_model_get_vocab(models[-1])
        return lambda text: made.encode(handle, text, False, False)

    yield load
    for model in models:
        lib.llama_model_free(model)


# Each is one match of an expression: letters, accents, spaces, line ends, signs.
WORDS = ["a", "A", "漢", "a\u0301", " ", "\n", "!"]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_is_longer_than_a_stack(vocabulary: Callable[..., Encode], word: str) -> None:
    encode = vocabulary()
    count = 100_000 // len(word)
    assert len(encode(word * count)) == count * len(word.encode())
    assert len(encode("x" + word * count + "x")) == count * len(word.encode()) + 2


@pytest.mark.parametrize("pre", ["gpt-4o", "exaone-moe", "deepseek-v3"])
def test_the_longest_line(vocabulary: Callable[..., Encode], pre: str) -> None:
    encode = vocabulary(pre)
    assert len(encode("a" * MOST_CHARS)) == MOST_CHARS
    assert len(encode("a b" * (MOST_CHARS // 3))) == MOST_CHARS // 3 * 3
    with pytest.raises(UsageError, match="has a line of 131073 characters; .* lines of 131072 at"):
        encode("a" * (MOST_CHARS + 1))
    lines = ("a" * 1000 + "\n") * 300
    assert len(encode(lines)) == len(lines)


def test_the_tokens_are_the_same_on_any_stack(
    vocabulary: Callable[..., Encode], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = vocabulary()
    text = "In the winter the other heron's WINTER 12345 !?\n\n  é漢字 of it all " * 60
    direct = encode(text)
    monkeypatch.setattr(tokenizing, "PLAIN_CHARS", 0)
    assert encode(text) == direct and len(direct) > 1000
    assert encode("") == []


def test_a_text_that_cannot_fit_is_refused_unread(vocabulary: Callable[..., Encode]) -> None:
    encode = vocabulary(context=100)
    longest = len("<|endoftext|>")
    assert len(encode("a" * 100 * longest)) == 1300  # what only might not fit is counted
    with pytest.raises(ContextError, match="has 1301 bytes, the context of 100 tokens holds 1300"):
        encode("a" * (100 * longest + 1))
    with pytest.raises(ContextError):
        encode("a" * 10_000_000)


def test_vocabularies_without_words_have_no_long_ones(vocabulary: Callable[..., Encode]) -> None:
    encode = vocabulary("gpt-2", "llama")  # GPT-2's words are cut without std::regex
    assert len(encode("a" * (MOST_CHARS + 1))) == MOST_CHARS + 1


@pytest.mark.parametrize(
    ("text", "chars"),
    [
        ("", 0), ("abc", 3), ("ab\ncdef", 4), ("abcd\nef", 5), ("ab\n\n\ncd", 5), ("ab\n cd", 6),
        ("ab\n_\n漢", 5), ("\n" * 9, 9), ("a\r\nb", 3),
    ],
)  # fmt: skip
def test_what_a_line_is(text: str, chars: int) -> None:
    assert longest_line(text) == chars


def test_a_failure_is_told_and_the_stack_of_threads_stays(
    vocabulary: Callable[..., Encode], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, before = vocabulary(), threading.stack_size()

    def fails(*_: object) -> list[int]:
        raise UsageError("not so")

    monkeypatch.setattr(GgufTokenizer, "_encode", fails)
    with pytest.raises(UsageError, match="not so"):
        encode("a" * 5000)

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(UsageError, match="needs 3608576 bytes of stack"):
        encode("a" * 5000)
    assert threading.stack_size() == before
