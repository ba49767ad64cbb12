"""The tokenizer on files that are damaged, hostile or of a kind that is not supported."""

from __future__ import annotations

import functools
import json
import random

import numpy as np
import pytest

from penstock.errors import FormatError, UnsupportedModelError
from penstock.runtime.tokenizer import MAX_TOKEN_ID, Tokenizer
from tests.tiny_tokenizers import ggml_metadata, sentencepiece, sentencepiece_metadata, trained

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
    metadata = ggml_metadata(trained("gpt-2"))
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
    return json.dumps({**json.loads(trained("gpt-2").to_str()), **parts})


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
    tokenizer = Tokenizer(ggml_metadata(trained("gpt-2")))

    class Interrupted:
        def decode(self, *_: object, **__: object) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "_pipeline", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        tokenizer.decode([1])


def test_flipped_bytes_in_the_json_never_escape(capfd: pytest.CaptureFixture[str]) -> None:
    good = trained("gpt-2").to_str()
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
    metadata = ggml_metadata(trained("gpt-2"))
    with pytest.raises(UnsupportedModelError, match="'t5'.*'gpt2' and 'llama'"):
        Tokenizer({**metadata, "tokenizer.ggml.model": "t5"})
    with pytest.raises(UnsupportedModelError, match="'kimi-k2'.*qwen2, .*smollm"):
        Tokenizer({**metadata, "tokenizer.ggml.pre": "kimi-k2"})
