"""Text to token ids and back, from the metadata that travels inside a GGUF file.

Two sources, in this order:

1. `tokenizer.huggingface.json`: the model's own `tokenizer.json`, taken as it is.
2. The `tokenizer.ggml.*` keys, from which the same pipeline is rebuilt: byte-level BPE (`gpt2`) or
   SentencePiece BPE with byte fallback (`llama`). The split patterns and the defaults are those of
   llama.cpp's `src/llama-vocab.cpp`; merges come from scores the way transformers derives them.

The work itself is done by the Rust library `tokenizers`. It answers damaged input with exceptions
of many kinds, also with a panic that is no `Exception`; here each becomes a `FormatError`.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

from penstock.errors import FormatError, UnsupportedModelError, UsageError

MAX_TOKEN_ID = (1 << 24) - 1  # sixty times the largest real vocabulary; more is a damaged file
_JSON = "tokenizer.huggingface.json"
_MODEL = "tokenizer.ggml.model"
_PRE = "tokenizer.ggml.pre"
_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_SCORES = "tokenizer.ggml.scores"
_MERGES = "tokenizer.ggml.merges"
# gguf.TokenType: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
# Control tokens that end a turn, for the many files that name no end-of-turn token at all.
_END_NAMES = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|eom_id|>", "<|endoftext|>")


class Tokenizer:
    """One model's tokenizer, safe to share between threads.

    Args:
        metadata: parsed GGUF key values; arrays are lists or one-dimensional numpy arrays.

    Attributes:
        bos_id: the token that starts a text, or None.
        eos_id: the token that ends a text, or None.
        eos_ids: every token after which generation stops; may be empty.
        vocab_size: the highest token id plus one. A model may have more output rows than that.
        chat_template: jinja2 source for `runtime.chat_template`, or None.
        add_bos: whether `encode` starts with `bos_id` when it is not told.

    Raises:
        FormatError: a key is missing, has the wrong type, or holds an id outside the vocabulary.
        UnsupportedModelError: the vocabulary or the pre-tokenizer is of a kind not known here.
    """

    def __init__(self, metadata: Mapping[str, object]) -> None:
        read = _Metadata(metadata)
        json_text = read.text(_JSON)
        self._pipeline = _from_ggml(read) if json_text is None else _from_json(json_text)
        self._lock = threading.Lock()
        with _format_errors(_MODEL if json_text is None else _JSON):
            highest_id = max(self._pipeline.get_vocab(with_added_tokens=True).values(), default=-1)
            added = self._pipeline.get_added_tokens_decoder()
        if not 0 <= highest_id <= MAX_TOKEN_ID:
            raise _wrong(_JSON, f"highest token id {highest_id}", f"0 to {MAX_TOKEN_ID}")
        self.vocab_size = highest_id + 1
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self.bos_id = read.token_id("bos", self.vocab_size)
        self.eos_id = read.token_id("eos", self.vocab_size)
        self.eos_ids = self._end_ids(read)
        self.chat_template = read.text("tokenizer.chat_template")
        add_bos = read.flag("tokenizer.ggml.add_bos_token")
        if add_bos is None:
            pre = _PRE_TOKENIZERS.get(read.text(_PRE) or "default")
            add_bos = read.text(_MODEL) == "llama" or (pre is not None and pre.add_bos)
        self.add_bos = add_bos and self.bos_id is not None

    def _end_ids(self, read: _Metadata) -> frozenset[int]:
        turn_ends = {read.token_id("eot", self.vocab_size), read.token_id("eom", self.vocab_size)}
        turn_ends.update(read.token_ids("tokenizer.ggml.eog_token_ids", self.vocab_size))
        if turn_ends == {None}:
            named = {self._pipeline.token_to_id(name) for name in _END_NAMES}
            turn_ends = named & self._special_ids
        return frozenset(i for i in turn_ends | {self.eos_id} if i is not None)

    def encode(
        self, text: str, add_bos: bool | None = None, parse_special: bool = True
    ) -> list[int]:
        """The token ids of a text.

        Args:
            text: any text that is valid Unicode.
            add_bos: start with `bos_id`. None takes the model's own rule, and then never doubles a
                `bos_id` that the text already starts with, as chat templates often write one.
            parse_special: whether the text of a control token, such as `<|im_end|>`, becomes that
                token. Pass False for text from people who may not steer the model that way.

        Raises:
            UsageError: the text is not valid Unicode, or `add_bos` is asked of a model without BOS.
            FormatError: the tokenizer of the file is damaged in a way that shows only now.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"text: {error}. Read it with errors='replace'.") from None
        with self._lock, _format_errors("encoding a text"):
            # A setting of the pipeline, not of the call: hence the lock.
            self._pipeline.encode_special_tokens = not parse_special
            ids: list[int] = self._pipeline.encode(text, add_special_tokens=False).ids
        if add_bos is None:
            add_bos = self.add_bos and ids[:1] != [self.bos_id]
        if add_bos and self.bos_id is None:
            raise UsageError("add_bos=True, but the model has no BOS token. Pass add_bos=None.")
        return [self.bos_id, *ids] if add_bos and self.bos_id is not None else ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; ids without a token count for nothing.

        Bytes that are no valid UTF-8 become U+FFFD. To decode while generating, use `Detokenizer`:
        decoding each id on its own breaks characters and loses spaces.

        Raises:
            UsageError: an id is negative or larger than 32 bits.
        """
        for token_id in ids:
            _check_id(token_id)
        with _format_errors("decoding token ids"):
            return self._pipeline.decode(ids, skip_special_tokens=skip_special)

    def piece(self, token_id: int) -> str | None:
        """The token's text as the vocabulary spells it (`Ġthe`, `▁the`, `<0xE2>`), or None."""
        _check_id(token_id)
        return self._pipeline.id_to_token(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether this is a control token, which `decode` leaves out unless told otherwise."""
        return token_id in self._special_ids

    def decoder_steps(self) -> list[dict[str, Any]]:
        """The steps that turn pieces into text, as `tokenizer.json` spells them."""
        decoder = self._pipeline.decoder
        if decoder is None:
            return []
        state: dict[str, Any] = json.loads(decoder.__getstate__())
        return list(state.get("decoders", [state]))


# ------------------------------------------------------------------ pre-tokenizers of gpt2 models


@dataclass(frozen=True)
class _PreTokenizer:
    """How a text is cut before merging: each pattern cuts the pieces that the one before left."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token stays one, whatever the merges say
    nfc: bool = False  # compose characters first
    add_bos: bool = False  # llama.cpp's default where the file does not say


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _CL100K.replace("DIGITS", "1,3")
_QWEN2 = _CL100K.replace("{DIGITS}", "")
_PRE_TOKENIZERS: dict[str, _PreTokenizer] = {
    # What llama.cpp does with files that say nothing: not GPT-2's rule. Exporters must not rely
    # on it; write "gpt-2" where that is meant.
    "default": _PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais"), _PreTokenizer((_GPT2,))),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell"),
        _PreTokenizer((r"\p{N}", _GPT2)),
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"),
        _PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _PreTokenizer((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _PreTokenizer((_QWEN2,), nfc=True)),
}


# ------------------------------------------------------------------ building the pipeline


def _from_json(json_text: str) -> Pipeline:
    with _format_errors(_JSON):
        pipeline = Pipeline.from_str(json_text)
        # Training leftovers that would silently cut or pad prompts.
        pipeline.no_truncation()
        pipeline.no_padding()
        return pipeline


def _from_ggml(read: _Metadata) -> Pipeline:
    kind = read.text(_MODEL)
    if kind is None:
        raise FormatError(
            f"the file has neither {_JSON} nor {_MODEL}, so it has no tokenizer. Export it again "
            "with its tokenizer."
        )
    build = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}.get(kind)
    if build is None:
        raise UnsupportedModelError(
            f"{_MODEL} is {kind!r}; supported are 'gpt2' and 'llama', and any tokenizer that the "
            f"file carries as {_JSON}."
        )
    tokens = read.strings(_TOKENS)
    # Converters pad vocabularies with empty strings; ids must not move.
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    vocab = {token: i for i, token in enumerate(tokens)}
    if not tokens or len(vocab) != len(tokens):
        raise _wrong(_TOKENS, f"{len(tokens)} tokens, {len(vocab)} different", "no duplicates")
    types = read.numbers(_TYPES, len(tokens), default=_NORMAL)
    pipeline = build(read, vocab, types)

    special = {i for i, kind_id in enumerate(types) if kind_id in (_UNKNOWN, _CONTROL)}
    named = (read.token_id(name, len(tokens)) for name in ("bos", "eos", "eot", "eom"))
    special.update(i for i in named if i is not None)
    user_defined = [i for i, kind_id in enumerate(types) if kind_id == _USER_DEFINED]
    with _format_errors(_TOKENS):
        added = sorted(special.union(user_defined))
        pipeline.add_tokens(
            [AddedToken(tokens[i], normalized=False, special=i in special) for i in added]
        )
    return pipeline


def _byte_level_bpe(read: _Metadata, vocab: dict[str, int], types: Sequence[float]) -> Pipeline:
    pre_name = read.text(_PRE) or "default"
    pre = _PRE_TOKENIZERS.get(pre_name)
    if pre is None:
        raise UnsupportedModelError(
            f"{_PRE} is {pre_name!r}; supported are {', '.join(sorted(_PRE_TOKENIZERS))}, and any "
            f"tokenizer that the file carries as {_JSON}."
        )
    merges: list[tuple[str, str]] = []
    for line in read.strings(_MERGES):
        # The left side is never empty, so a leading space belongs to it.
        cut = line.find(" ", 1)
        if cut < 0:
            raise _wrong(_MERGES, line, "two pieces with a space between")
        merges.append((line[:cut], line[cut + 1 :]))
    with _format_errors(_MERGES):
        pipeline = Pipeline(models.BPE(vocab, merges, ignore_merges=pre.ignore_merges))
        splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in pre.patterns]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pipeline.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
        pipeline.decoder = decoders.ByteLevel()
        if pre.nfc:
            pipeline.normalizer = normalizers.NFC()
    return pipeline


def _sentencepiece_bpe(read: _Metadata, vocab: dict[str, int], types: Sequence[float]) -> Pipeline:
    scores = read.numbers(_SCORES, len(vocab))
    atoms = (_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE)  # never parts or results of a merge
    skipped = {token for token, kind in zip(vocab, types, strict=True) if kind in atoms}
    unknown_id = read.token_id("unknown", len(vocab))
    if unknown_id is None and types[0] == _UNKNOWN:
        unknown_id = 0
    space_prefix = read.flag("tokenizer.ggml.add_space_prefix") is not False
    with _format_errors(_TOKENS):
        model = models.BPE(
            vocab,
            _merges_from_scores(vocab, scores, skipped),
            unk_token=None if unknown_id is None else list(vocab)[unknown_id],
            fuse_unk=True,
            byte_fallback=True,
        )
        pipeline = Pipeline(model)
        prefix = [normalizers.Prepend("▁")] if space_prefix else []
        pipeline.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", left=1)] if space_prefix else []
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        pipeline.decoder = decoders.Sequence(steps)
    return pipeline


def _merges_from_scores(
    vocab: Mapping[str, int], scores: Sequence[float], skipped: Collection[str]
) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, best score first.

    Same order as `generate_merges` in transformers (`convert_slow_tokenizer.py`), which the ids of
    every converted Llama tokenizer depend on: ties go to the longer left side, then to lower ids.
    """
    parts = {token: i for token, i in vocab.items() if token not in skipped}
    merges: list[tuple[float, str, str]] = []
    for token, token_id in parts.items():
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        found = [(left, right) for left, right in cuts if left in parts and right in parts]
        found.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges.extend((scores[token_id], left, right) for left, right in found)
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]


# ------------------------------------------------------------------ reading what may be damaged


@contextmanager
def _format_errors(what: str) -> Iterator[None]:
    """Turn whatever `tokenizers` raises, a Rust panic included, into a `FormatError`."""
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # pyo3's, which cannot be imported
        if isinstance(error, MemoryError) or not (panic or isinstance(error, Exception)):
            raise
        raise FormatError(
            f"{what}: the tokenizer library refuses it: {str(error)[:200]}. Expected a valid "
            "tokenizer; the file is probably damaged: export or download it again."
        ) from None


def _check_id(token_id: int) -> None:
    if not 0 <= token_id < 1 << 32:
        raise UsageError(f"token id {token_id} is out of range; expected 0 to 4294967295.")


class _Metadata:
    """Typed access to metadata of unknown origin; every error names the key."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise _wrong(key, value, "a string")
        return value

    def flag(self, key: str) -> bool | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, (bool, np.bool_)):
            raise _wrong(key, value, "a bool")
        return None if value is None else bool(value)

    def token_id(self, name: str, vocab_size: int) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self._values.get(key)
        return None if value is None else _checked_token_id(key, value, vocab_size)

    def token_ids(self, key: str, vocab_size: int) -> list[int]:
        values = [] if self._values.get(key) is None else self._array(key)
        return [_checked_token_id(key, value, vocab_size) for value in values]

    def strings(self, key: str) -> list[str]:
        values = self._array(key)
        for i, value in enumerate(values):
            if not isinstance(value, str):
                raise _wrong(f"{key}[{i}]", value, "a string")
        return values

    def numbers(self, key: str, count: int, default: int | None = None) -> list[float]:
        if default is not None and self._values.get(key) is None:
            return [default] * count
        values = self._array(key)
        if len(values) != count:
            raise _wrong(key, f"{len(values)} values", f"{count}, one for each token")
        for i, value in enumerate(values):
            if type(value) not in (int, float) or not math.isfinite(value):
                raise _wrong(f"{key}[{i}]", value, "a finite number")
        return values

    def _array(self, key: str) -> list[Any]:
        value = self._values.get(key)
        if isinstance(value, np.ndarray) and value.ndim == 1:
            return list(value.tolist())
        if not isinstance(value, (list, tuple)):
            raise _wrong(key, value, "an array")
        return list(value)


def _checked_token_id(key: str, value: object, vocab_size: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise _wrong(key, value, "a token id")
    if not 0 <= value < vocab_size:
        raise _wrong(key, int(value), f"a token id from 0 to {vocab_size - 1}")
    return int(value)


def _wrong(key: str, value: object, expected: str) -> FormatError:
    found = "missing" if value is None else repr(value)[:80]
    return FormatError(
        f"{key} is {found}; expected {expected}. The file is damaged or was written by a faulty "
        "converter: export or download it again."
    )
