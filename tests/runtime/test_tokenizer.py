"""The tokenizer against the originals that it is rebuilt from, and on damaged files."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from penstock.errors import FormatError, UnsupportedModelError, UsageError
from penstock.runtime.tokenizer import MAX_TOKEN_ID, Tokenizer

CORPUS = [
    "Once upon a time there was a queen who had 12 sons, and she'd 345 sheep.",
    "  Two  spaces,\ttabs\nand lines\r\n\r\nof naïve café text… It's HE'LL we've!",
    "Жили-были старик да старуха; 很久以前有一个王后。むかしむかし",
    "😀👩‍👩‍👧‍👦 e\u0301 vs é, x=y+1 [a|b] ^~ 2²",
] * 3
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


def ggml_metadata(pipeline: Pipeline, **extra: object) -> dict[str, object]:
    """What convert_hf_to_gguf writes for a byte-level BPE."""
    vocab = pipeline.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    added = pipeline.get_added_tokens_decoder()
    types = [(3 if added[i].special else 4) if i in added else 1 for i in range(len(tokens))]
    merges = json.loads(pipeline.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        **extra,
    }


def byte_level(pre: list[Any], **model: Any) -> Pipeline:
    pipeline = Pipeline(models.BPE(**model))
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(pre)
    pipeline.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pipeline.train_from_iterator(CORPUS, trainer)
    return pipeline


def sentencepiece(space_prefix: bool = True, vocab_size: int = 420) -> Pipeline:
    """A SentencePiece-style BPE with byte fallback, laid out as Llama 2's."""
    pipeline = Pipeline(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prefix = [normalizers.Prepend("▁")] if space_prefix else []
    pipeline.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", left=1)] if space_prefix else []
    pipeline.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    atoms = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=atoms,
        limit_alphabet=40,
        show_progress=False,
        max_token_length=8,
    )
    pipeline.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    # Byte tokens are no added tokens in a real file.
    plain = json.loads(pipeline.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["id"] < 3]
    return Pipeline.from_str(json.dumps(plain))


def sentencepiece_metadata(pipeline: Pipeline, **extra: object) -> dict[str, object]:
    vocab = pipeline.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    # A trained piece has the score -rank, as SentencePiece writes it.
    scores = [0.0 if i < 259 else float(259 - i) for i in range(len(tokens))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **extra,
    }


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


# The pre-tokenizers as the models' own tokenizer.json spell them, not as tokenizer.py does.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"add_prefix_space": False, "use_regex": False}


def _split(pattern: str) -> list[Any]:
    from tokenizers import Regex

    return [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(**_BYTES)]


def _original(pre: str) -> Pipeline:
    return Pipeline.from_str(_original_json(pre))  # tests may change their own copy


@functools.cache
def _original_json(pre: str) -> str:
    return _trained(pre).to_str()


def _trained(pre: str) -> Pipeline:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "gpt-2":
        return byte_level([gpt2])
    if pre == "smollm":
        return byte_level([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if pre == "qwen2":
        pipeline = byte_level(_split(_LLAMA3_SPLIT.replace("{1,3}", "")))
        pipeline.normalizer = normalizers.NFC()
        return pipeline
    return byte_level(_split(_LLAMA3_SPLIT), ignore_merges=pre != "dbrx")


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe", "llama3", "dbrx"])
def test_pre_tokenizers_match_the_originals(pre: str) -> None:
    original = _original(pre)
    rebuilt = Tokenizer(ggml_metadata(original, **{"tokenizer.ggml.pre": pre}))
    for text in TEXTS:
        assert rebuilt.encode(text) == original.encode(text).ids, text


@functools.cache
def _pair(pre: str) -> tuple[Pipeline, Tokenizer]:
    original = _original(pre)
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
    tokenizer = Tokenizer(ggml_metadata(_original("gpt-2")))
    end = tokenizer.encode("<|end|>")
    assert end == [1] and tokenizer.is_special(1) and not tokenizer.is_special(5)
    plain = tokenizer.encode("<|end|>", parse_special=False)
    assert len(plain) > 1 and 1 not in plain
    assert tokenizer.encode("<|end|>") == [1]  # the setting does not stick
    assert tokenizer.decode([1, *plain]) == "<|end|>"
    assert tokenizer.decode([1, *plain], skip_special=False) == "<|end|><|end|>"


def test_user_defined_tokens_are_found_but_shown() -> None:
    metadata = ggml_metadata(_original("gpt-2"))
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
    gpt2 = Tokenizer(ggml_metadata(_original("gpt-2")))
    with pytest.raises(UsageError, match="no BOS"):
        gpt2.encode("a", add_bos=True)
    llama3 = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.bos_token_id": 0}
    assert Tokenizer(ggml_metadata(_original("llama-bpe"), **llama3)).encode("a")[0] == 0


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
    original = _original("gpt-2")
    original.enable_truncation(4)
    original.enable_padding(length=32)
    tokenizer = Tokenizer({"tokenizer.huggingface.json": original.to_str()})
    assert tokenizer.decode(tokenizer.encode(CORPUS[0])) == CORPUS[0]


def test_ids_without_a_token_count_for_nothing() -> None:
    tokenizer = Tokenizer(ggml_metadata(_original("gpt-2")))
    assert tokenizer.piece(1_000_000) is None
    assert tokenizer.decode([1_000_000, *tokenizer.encode("a"), 4_000_000_000]) == "a"
    for bad in (-1, 1 << 32):
        with pytest.raises(UsageError, match=str(bad)):
            tokenizer.decode([bad])


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(UsageError, match="surrogates"):
        Tokenizer(ggml_metadata(_original("gpt-2"))).encode("a\ud800")


# ------------------------------------------------------------------ damaged and foreign files


DAMAGES: list[tuple[str, object]] = [  # a key without "tokenizer.", its value; None: no such key
    ("ggml.model", None),
    ("ggml.model", 3),
    ("ggml.tokens", None),
    ("ggml.tokens", "abc"),
    ("ggml.tokens", []),
    ("ggml.tokens", np.zeros((2, 2))),
    ("ggml.tokens", ["a", b"x"]),
    ("ggml.tokens", ["a", "a"]),
    ("ggml.merges", None),
    ("ggml.merges", ["ab"]),
    ("ggml.merges", [3]),
    ("ggml.merges", ["zzz yyy"]),
    ("ggml.merges", ["\udcff a"]),
    ("ggml.token_type", [1, 1]),
    ("ggml.token_type", ["x"] * 450),
    ("ggml.bos_token_id", 1 << 31),
    ("ggml.bos_token_id", True),
    ("ggml.eos_token_id", -1),
    ("ggml.eos_token_id", "2"),
    ("ggml.eot_token_id", 450),
    ("ggml.eog_token_ids", [1, 1 << 40]),
    ("ggml.add_bos_token", "yes"),
    ("chat_template", ["a"]),
    ("huggingface.json", 7),
    ("huggingface.json", ""),
    ("huggingface.json", "{}"),
    ("huggingface.json", "[" * 100_000),
]


@functools.cache
def _good_metadata() -> dict[str, object]:
    metadata = ggml_metadata(_original("gpt-2"))
    Tokenizer(metadata)
    return metadata


@pytest.mark.parametrize("key, value", DAMAGES)
def test_damaged_metadata_names_the_key(key: str, value: object) -> None:
    with pytest.raises(FormatError, match=f"tokenizer.{key}") as caught:
        Tokenizer({**_good_metadata(), f"tokenizer.{key}": value})
    assert "again" in str(caught.value)  # what to do


def test_tokens_that_are_no_unicode() -> None:
    tokens = [*list(_good_metadata()["tokenizer.ggml.tokens"])[:-1], "\udcff"]  # type: ignore[call-overload]
    with pytest.raises(FormatError, match="tokenizer.ggml"):
        Tokenizer({**_good_metadata(), "tokenizer.ggml.tokens": tokens})


def test_damaged_sentencepiece_metadata() -> None:
    good = sentencepiece_metadata(sentencepiece())
    count = len(list(good["tokenizer.ggml.tokens"]))  # type: ignore[call-overload]
    for scores in (None, [0.0], [float("nan")] * count, ["a"] * count, [None] * count):
        with pytest.raises(FormatError, match="tokenizer.ggml.scores"):
            Tokenizer({**good, "tokenizer.ggml.scores": scores})
    with pytest.raises(FormatError, match="unknown_token_id"):
        Tokenizer({**good, "tokenizer.ggml.unknown_token_id": count})


def _patched(**parts: object) -> str:
    return json.dumps({**json.loads(_original("gpt-2").to_str()), **parts})


@pytest.mark.parametrize(
    "parts",
    [
        # The first two make the Rust library panic, which is no Exception in Python.
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        {"model": {"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]]}},
        {"model": {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}, "added_tokens": []},
        {"model": {"type": "BPE", "vocab": {"a": MAX_TOKEN_ID + 1}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []},
    ],
)
def test_hostile_json_is_a_format_error(
    parts: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FormatError, match="tokenizer.huggingface.json"):
        Tokenizer({"tokenizer.huggingface.json": _patched(**parts)})
    capfd.readouterr()  # the panic's own message


def test_interrupts_are_no_format_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(ggml_metadata(_original("gpt-2")))

    class Interrupted:
        def decode(self, *_: object, **__: object) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "_pipeline", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        tokenizer.decode([1])


def test_flipped_bytes_in_the_json_never_escape(capfd: pytest.CaptureFixture[str]) -> None:
    good = _original("gpt-2").to_str()
    random.seed(11)
    refused = 0
    for _ in range(150):
        at = random.randrange(len(good))
        text = good[:at] + random.choice('{}[],:"x0-9\\') + good[at + random.randint(0, 3) :]
        try:
            Tokenizer({"tokenizer.huggingface.json": text}).encode("Once upon")
        except FormatError:
            refused += 1
    capfd.readouterr()
    assert refused > 50


def test_unsupported_kinds_list_the_supported() -> None:
    metadata = ggml_metadata(_original("gpt-2"))
    with pytest.raises(UnsupportedModelError, match="'t5'.*'gpt2' and 'llama'"):
        Tokenizer({**metadata, "tokenizer.ggml.model": "t5"})
    with pytest.raises(UnsupportedModelError, match="'kimi-k2'.*qwen2, .*smollm"):
        Tokenizer({**metadata, "tokenizer.ggml.pre": "kimi-k2"})
