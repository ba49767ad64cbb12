"""The tokenizer against the originals that it is rebuilt from."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Pipeline
from tokenizers import pre_tokenizers

from penstock.errors import UsageError
from penstock.runtime.tokenizer import Tokenizer
from tests.tiny_tokenizers import (
    CORPUS,
    byte_level,
    ggml_metadata,
    sentencepiece,
    sentencepiece_metadata,
    trained,
)

TEXTS = [
    *CORPUS[:4],
    "",
    " ",
    "a",
    "\n\n  x",
    "½ Ⅷ 007",
    "don'T",
    "㍿\u00a0nbsp",
    "<|end|>hi<|end|>",
]


@pytest.fixture(scope="module")
def storyteller_json(shared_dir: Path) -> str:
    return (shared_dir / "models/storyteller-start/tokenizer.json").read_text()


# ------------------------------------------------------------------ same ids as the original


def test_huggingface_json_gives_the_original_ids(storyteller_json: str) -> None:
    original = Pipeline.from_str(storyteller_json)
    tokenizer = Tokenizer({"tokenizer.huggingface.json": storyteller_json})
    for text in TEXTS:
        assert tokenizer.encode(text) == original.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 4096
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.chat_template) == (None, None, None)
    assert tokenizer.eos_ids == {0}  # <|endoftext|>, known by its name


def test_rebuilt_from_ggml_keys_gives_the_original_ids_on_fairy_tales(
    storyteller_json: str, shared_dir: Path
) -> None:
    original = Pipeline.from_str(storyteller_json)
    keys = {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0}
    rebuilt = Tokenizer(ggml_metadata(original, **keys))
    assert rebuilt.vocab_size == 4096
    for book in ("The-Lilac-Fairy-Book_3454.txt", "Alice-s-Adventures-in-Wonderland_11.txt"):
        text = (shared_dir / "data/fairytales" / book).read_text()[:150_000]
        ids = rebuilt.encode(text)
        assert ids == original.encode(text).ids
        assert rebuilt.decode(ids) == text
    assert rebuilt.encode("<|endoftext|>Hi")[0] == 0


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe", "llama3", "dbrx"])
def test_pre_tokenizers_match_the_originals(pre: str) -> None:
    original = trained(pre)
    rebuilt = Tokenizer(ggml_metadata(original, **{"tokenizer.ggml.pre": pre}))
    for text in TEXTS:
        assert rebuilt.encode(text) == original.encode(text).ids, text


@functools.cache
def _pair(pre: str) -> tuple[Pipeline, Tokenizer]:
    original = trained(pre)
    return original, Tokenizer(ggml_metadata(original, **{"tokenizer.ggml.pre": pre}))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_pre_tokenizers_match_on_any_text(pre: str, text: str) -> None:
    original, rebuilt = _pair(pre)
    assert rebuilt.encode(text) == original.encode(text).ids


def test_ignore_merges_is_llama3_only() -> None:
    # "abc" is a token, but its merge is missing: only ignore_merges reaches it.
    tokens = ["a", "b", "c", "ab", "abc"]
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens}
    metadata["tokenizer.ggml.merges"] = ["a b"]
    for pre, ids in (("llama-bpe", [4]), ("dbrx", [3, 2])):
        assert Tokenizer({**metadata, "tokenizer.ggml.pre": pre}).encode("abc") == ids


def test_default_pre_tokenizer_is_llama_cpps() -> None:
    # llama.cpp's default cuts at every punctuation mark and into threes of digits; GPT-2 does not.
    tokens = ["1", "2", "11", "111", "1111", ",", "Ġ", "Ġ,"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["1 1", "11 1", "11 11", "Ġ ,"],
    }
    default, gpt2 = Tokenizer(metadata), Tokenizer({**metadata, "tokenizer.ggml.pre": "gpt-2"})
    assert gpt2.encode("11111 ,") == [2, 3, 7]
    assert default.encode("11111 ,") == [3, 2, 6, 5]
    assert default.encode("1 ,") == Tokenizer({**metadata, "tokenizer.ggml.pre": "default"}).encode(
        "1 ,"
    )


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_rebuilt_from_scores(space_prefix: bool) -> None:
    original = sentencepiece(space_prefix)
    extra = {} if space_prefix else {"tokenizer.ggml.add_space_prefix": np.bool_(False)}
    rebuilt = Tokenizer(sentencepiece_metadata(original, **extra))
    for text in TEXTS:
        ids = rebuilt.encode(text, add_bos=False)
        assert ids == original.encode(text).ids, text
        assert rebuilt.decode(ids) == text
    assert rebuilt.encode("a") == [1, *original.encode("a").ids]
    assert any(3 <= i < 259 for i in rebuilt.encode("龍"))  # byte fallback is at work


def test_merges_from_scores_are_transformers() -> None:
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    from penstock.runtime.tokenizer import _merges_from_scores

    random.seed(4)
    words = {"".join(random.choices("abc▁", k=random.randint(1, 5))) for _ in range(150)}
    vocab = {word: i for i, word in enumerate(sorted(words | set("abc▁")))}
    scores = [-float(random.randint(0, 40)) for _ in vocab]  # ties on purpose
    skipped = set(list(vocab)[:10])
    expected = convert.generate_merges(vocab, dict(zip(vocab, scores, strict=True)), skipped)
    assert len(expected) > 50
    assert _merges_from_scores(vocab, scores, skipped) == expected


@functools.cache
def _sentencepiece() -> Tokenizer:
    return Tokenizer(sentencepiece_metadata(sentencepiece()))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_round_trip_of_any_text(text: str) -> None:
    byte_tokenizer, byte_fallback = _pair("gpt-2")[1], _sentencepiece()
    assert byte_tokenizer.decode(byte_tokenizer.encode(text, parse_special=False)) == text
    ids = byte_fallback.encode(text, parse_special=False)
    assert byte_fallback.decode(ids) == text.replace("▁", " ")


# ------------------------------------------------------------------ special tokens


def test_special_tokens_are_parsed_only_on_request() -> None:
    tokenizer = Tokenizer(ggml_metadata(trained("gpt-2")))
    end = tokenizer.encode("<|end|>")
    assert end == [1] and tokenizer.is_special(1) and not tokenizer.is_special(5)
    plain = tokenizer.encode("<|end|>", parse_special=False)
    assert len(plain) > 1 and 1 not in plain
    assert tokenizer.encode("<|end|>") == [1]  # the setting does not stick
    assert tokenizer.decode([1, *plain]) == "<|end|>"
    assert tokenizer.decode([1, *plain], skip_special=False) == "<|end|><|end|>"


def test_user_defined_tokens_are_found_but_shown() -> None:
    metadata = ggml_metadata(trained("gpt-2"))
    tokens: Any = metadata["tokenizer.ggml.tokens"]
    metadata["tokenizer.ggml.tokens"] = [*tokens, "<tool call>"]
    metadata["tokenizer.ggml.token_type"] = [3, 3, *[1] * (len(tokens) - 2), 4]
    tokenizer = Tokenizer(metadata)
    ids = tokenizer.encode("a<tool call>b", parse_special=False)
    assert len(tokens) in ids and not tokenizer.is_special(len(tokens))
    assert tokenizer.decode(ids) == "a<tool call>b"


def test_bos_rules() -> None:
    original = sentencepiece()
    tokenizer = Tokenizer(sentencepiece_metadata(original))
    assert tokenizer.add_bos and tokenizer.encode("")[:1] == [1]
    assert tokenizer.encode("<s>a").count(1) == 1  # a template wrote it already
    assert tokenizer.encode("<s>a", add_bos=True).count(1) == 2
    assert 1 not in tokenizer.encode("a", add_bos=False)
    off = Tokenizer(sentencepiece_metadata(original, **{"tokenizer.ggml.add_bos_token": False}))
    assert 1 not in off.encode("a") and off.encode("a", add_bos=True)[0] == 1
    gpt2 = Tokenizer(ggml_metadata(trained("gpt-2")))
    with pytest.raises(UsageError, match="no BOS"):
        gpt2.encode("a", add_bos=True)
    llama3 = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.bos_token_id": 0}
    assert Tokenizer(ggml_metadata(trained("llama-bpe"), **llama3)).encode("a")[0] == 0


def test_end_ids() -> None:
    original = byte_level([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    original.add_special_tokens(["<|im_end|>", "<|eot_id|>", "<|eom_id|>"])
    im_end, eot, eom = range(original.get_vocab_size() - 3, original.get_vocab_size())
    key = "tokenizer.ggml.{}_token_id".format

    def end_ids(**extra: object) -> frozenset[int]:
        return Tokenizer(ggml_metadata(original, **{key("eos"): 1}, **extra)).eos_ids

    assert end_ids() == {1, im_end, eot, eom}  # the file names none: well-known control tokens
    assert end_ids(**{key("eot"): eot}) == {1, eot}
    assert end_ids(**{key("eot"): eot, key("eom"): eom}) == {1, eot, eom}
    ids = np.array([5, eot], np.uint32)
    assert end_ids(**{"tokenizer.ggml.eog_token_ids": ids}) == {1, 5, eot}


def test_truncation_left_in_the_json_is_ignored() -> None:
    original = trained("gpt-2")
    original.enable_truncation(4)
    original.enable_padding(length=32)
    tokenizer = Tokenizer({"tokenizer.huggingface.json": original.to_str()})
    assert tokenizer.decode(tokenizer.encode(CORPUS[0])) == CORPUS[0]


def test_ids_without_a_token_count_for_nothing() -> None:
    tokenizer = Tokenizer(ggml_metadata(trained("gpt-2")))
    assert tokenizer.piece(1_000_000) is None
    assert tokenizer.decode([1_000_000, *tokenizer.encode("a"), 4_000_000_000]) == "a"
    for bad in (-1, 1 << 32):
        with pytest.raises(UsageError, match=str(bad)):
            tokenizer.decode([bad])


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(UsageError, match="surrogates"):
        Tokenizer(ggml_metadata(trained("gpt-2"))).encode("a\ud800")
