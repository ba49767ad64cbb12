"""A stream of text equals decoding everything at once, whatever the ids."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

from penstock.runtime.detokenizer import Detokenizer
from penstock.runtime.tokenizer import Tokenizer

WORDS = ["Hello", "▁world", "▁", " ", "é", "😀", "▁▁", "##ing", "a</w>", "n't", ".", "\n", "�"]


def _vocab(*extra: str) -> dict[str, int]:
    tokens = ["<s>", "</s>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), *WORDS, *extra]
    return {token: i for i, token in enumerate(tokens)}


def _with_decoder(decoder: Any, vocab: dict[str, int] | None = None) -> Tokenizer:
    pipeline = Pipeline(models.BPE(vocab or _vocab(), [], byte_fallback=True))
    if decoder is not None:
        pipeline.decoder = decoder
    pipeline.add_special_tokens(["<s>", "</s>"])
    return Tokenizer({"tokenizer.huggingface.json": pipeline.to_str()})


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate([*alphabet, "<s>", "Ġa", "ĠĠ", "Ãĥ"])}
    pipeline = Pipeline(models.BPE(vocab, []))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    pipeline.add_special_tokens(["<s>"])
    # Added tokens in plain text: one that the byte alphabet could spell and one that it cannot.
    added = ["éé", "two words", "日本"]
    pipeline.add_tokens([AddedToken(text, normalized=False) for text in added])
    return Tokenizer({"tokenizer.huggingface.json": pipeline.to_str()})


def _sequence(*steps: Any) -> Any:
    return decoders.Sequence(list(steps))


_SPACE = decoders.Replace("▁", " ")
TOKENIZERS = {
    "byte level": _byte_level(),
    "llama": _with_decoder(
        _sequence(_SPACE, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1))
    ),
    "gemma": _with_decoder(_sequence(_SPACE, decoders.ByteFallback(), decoders.Fuse())),
    "metaspace": _with_decoder(decoders.Metaspace()),
    "word piece": _with_decoder(decoders.WordPiece()),
    "bpe decoder": _with_decoder(decoders.BPEDecoder()),
    "no decoder": _with_decoder(None),
    "looks at its neighbours": _with_decoder(decoders.CTC(".", "▁", cleanup=False)),
    "looks across": _with_decoder(_sequence(decoders.Fuse(), decoders.Replace("o▁w", "0W"))),
}


def stream(tokenizer: Tokenizer, ids: list[int], **options: Any) -> list[str]:
    detokenizer = Detokenizer(tokenizer, **options)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


# Bytes and words about equally often, so that runs of bytes of all kinds come up; also some ids
# that have no token.
_WORD_IDS = st.one_of(st.integers(0, 2), st.integers(259, 275))
_EMOJI_IDS = [3 + byte for byte in "👩‍👧é".encode()]
IDS = st.lists(
    st.one_of(
        _WORD_IDS.map(lambda i: [i]),
        st.integers(3, 258).map(lambda i: [i]),
        st.integers(0, len(_EMOJI_IDS)).map(lambda n: _EMOJI_IDS[:n]),
    ),
    max_size=12,
).map(lambda lists: [i for ids in lists for i in ids])


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=80, deadline=None)
@given(ids=IDS, skip_special=st.booleans())
@example(ids=[259, 260], skip_special=True)  # "Hello▁world"
def test_stream_equals_decode(kind: str, ids: list[int], skip_special: bool) -> None:
    tokenizer = TOKENIZERS[kind]
    pieces = stream(tokenizer, ids, skip_special=skip_special)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special)


@pytest.mark.parametrize("kind", ["byte level", "llama", "gemma"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_stream_of_any_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, parse_special=False)
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in "".join(pieces):
        assert all("\ufffd" not in piece for piece in pieces)


def test_characters_split_over_tokens_are_never_broken() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("a😀é")
    assert len(ids) == 7
    assert stream(tokenizer, ids) == ["a", "", "", "", "😀", "", "é", ""]
    assert stream(tokenizer, ids[:3]) == ["a", "", "", "\ufffd"]  # cut off inside the emoji


def test_byte_fallback_waits_for_the_run_only() -> None:
    tokenizer = TOKENIZERS["llama"]
    vocab = _vocab()
    snowman = [3 + byte for byte in "☃".encode()]
    ids = [vocab["Hello"], *snowman, vocab["▁world"], vocab["."]]
    assert stream(tokenizer, ids) == ["Hello", "", "", "", "☃ world", ".", ""]
    # One wrong byte makes the whole run wrong, which is why it has to wait.
    bad = [*snowman, 3 + 0xFF]
    assert "".join(stream(tokenizer, bad)) == tokenizer.decode(bad) == "\ufffd" * 4


def test_first_space_is_dropped_only_without_context() -> None:
    tokenizer, vocab = TOKENIZERS["llama"], _vocab()
    hello, world, end = vocab["Hello"], vocab["▁world"], vocab["</s>"]
    assert "".join(stream(tokenizer, [world, world])) == "world world"
    assert "".join(stream(tokenizer, [world], context=[hello])) == " world"
    # A control token is no text: alone it is no context, and it does not hide the word before it.
    assert "".join(stream(tokenizer, [world], context=[end])) == "world"
    assert "".join(stream(tokenizer, [world], context=[hello, end])) == " world"
    assert "".join(stream(tokenizer, [hello, end, world])) == "Hello world"


@pytest.mark.parametrize("kind", ["byte level", "llama", "gemma", "metaspace", "word piece"])
@settings(max_examples=60, deadline=None)
@given(words=st.lists(_WORD_IDS, max_size=6), ids=IDS)
def test_context_is_continued(kind: str, words: list[int], ids: list[int]) -> None:
    tokenizer = TOKENIZERS[kind]
    context = [] if kind == "byte level" else words
    expected = tokenizer.decode(context + ids)[len(tokenizer.decode(context)) :]
    assert "".join(stream(tokenizer, ids, context=context)) == expected


@pytest.mark.parametrize("kind", ["byte level", "llama", "metaspace"])
def test_cost_of_a_token_does_not_grow(kind: str) -> None:
    # Counted, not timed: how many ids the tokenizer is asked to decode for each push.
    tokenizer = TOKENIZERS[kind]
    decoded_ids: list[int] = []

    class Counting(Tokenizer):
        def __init__(self) -> None:
            self.__dict__.update(tokenizer.__dict__)

        def decode(self, ids: Any, skip_special: bool = True) -> str:
            decoded_ids.append(len(ids))
            return super().decode(ids, skip_special)

    detokenizer = Detokenizer(Counting())
    start = time.process_time()
    for _ in range(2000):
        detokenizer.push(261)
    assert sum(decoded_ids) <= 2000 * 3
    assert time.process_time() - start < 5


def test_decode_stream_of_tokenizers_would_not_do() -> None:
    """Why Detokenizer exists; when this fails, the library's own may have become good enough."""
    pipeline = Pipeline(models.BPE(_vocab(), [], byte_fallback=True))
    pipeline.decoder = _sequence(_SPACE, decoders.ByteFallback(), decoders.Fuse())
    ids = [259, 3 + 0xF0, 3 + 0x9F]  # "Hello" and half an emoji
    library = decoders.DecodeStream(skip_special_tokens=True)
    pieces = [library.step(pipeline, i) or "" for i in ids]
    assert "".join(pieces) != pipeline.decode(ids)  # nothing ever gives the rest
    ids = [_vocab()["�"]] * 9
    library = decoders.DecodeStream(skip_special_tokens=True)
    assert not any(library.step(pipeline, i) for i in ids)  # all are held back
