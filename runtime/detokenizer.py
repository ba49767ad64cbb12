"""Token ids to text while they are generated: nothing lost, nothing twice, no broken characters.

Three things make this harder than decoding each id on its own: a character may be spread over
several tokens, SentencePiece drops the space at the start of a text only, and a run of byte tokens
(`<0xF0>`, `<0x9F>`...) is one unit: a wrong byte anywhere in it changes how all of it is decoded.

`tokenizers.DecodeStream` (0.23) is not used: it has no flush, so text that ends inside a character
is lost, and it waits while the text ends in U+FFFD, decoding an ever longer buffer where that is
what the tokens really say.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from penstock.runtime.tokenizer import Tokenizer


class Detokenizer:
    """A stream of text for a stream of token ids.

    All pushes and the flush joined are exactly `tokenizer.decode(ids, skip_special)`. The cost of a
    token does not grow with the length of the text.

    When text is released depends on the tokenizer's decoder:
        byte_level: a character is released with its last byte.
        pieces: a token is released at once, a run of byte tokens with the token after it.
        whole: decoders that look at the end of the text release everything on flush. No language
            model known to us has one.

    Args:
        tokenizer: the model's tokenizer.
        skip_special: leave control tokens out of the text.
        context: ids before the stream, such as the prompt's. Then the first word keeps its space:
            the joined text continues `tokenizer.decode(context)`.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special: bool = True, context: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._kind = _decoder_kind(tokenizer.decoder_steps())
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending: list[int] = []  # ids whose text is not released yet
        self._prefix: list[int] = []  # the last released id: context for what comes next
        self._prefix_chars = 0  # the length of its own text
        for token_id in reversed(context):
            if self._is_visible(token_id) and not _is_byte(tokenizer.piece(token_id)):
                self._set_prefix(token_id)
                break

    def push(self, token_id: int) -> str:
        """The text that this token completes; may be empty.

        Raises:
            UsageError: the id is negative or larger than 32 bits.
        """
        piece = self._tokenizer.piece(token_id)
        if piece is None or not self._is_visible(token_id):
            return ""
        if self._kind == "byte_level":
            return self._utf8.decode(_byte_level_bytes(piece))
        self._pending.append(token_id)
        if self._kind == "whole" or _is_byte(piece):
            return ""
        return self._release()

    def flush(self) -> str:
        """The rest of the text, at the end of the stream. Half a character becomes U+FFFD."""
        if self._kind == "byte_level":
            return self._utf8.decode(b"", final=True)
        return self._release()

    def _release(self) -> str:
        if not self._pending:
            return ""
        ids = self._prefix + self._pending
        text = self._tokenizer.decode(ids, skip_special=False)[self._prefix_chars :]
        last_id = self._pending[-1]
        self._pending.clear()
        # Bytes come last only on a flush; an empty piece gives the next one no context.
        if self._tokenizer.piece(last_id):
            self._set_prefix(last_id)
        return text

    def _set_prefix(self, token_id: int) -> None:
        self._prefix = [token_id]
        self._prefix_chars = len(self._tokenizer.decode(self._prefix, skip_special=False))

    def _is_visible(self, token_id: int) -> bool:
        if self._skip_special and self._tokenizer.is_special(token_id):
            return False
        return self._tokenizer.piece(token_id) is not None


# A character is released with its last byte; a piece at once; all of the text on flush.
_Kind = Literal["byte_level", "pieces", "whole"]


def _decoder_kind(steps: Sequence[Mapping[str, Any]]) -> _Kind:
    names = {step["type"] for step in steps}
    if "ByteLevel" in names and names <= {"ByteLevel", "Fuse"}:
        return "byte_level"
    return "pieces" if all(map(_is_local, steps)) else "whole"


def _is_local(step: Mapping[str, Any]) -> bool:
    """Whether one visible token of context is enough to decode the next one."""
    if step["type"] == "Strip":
        return bool(step["stop"] == 0 and step["start"] <= 1)
    if step["type"] == "Replace":
        return len(step["pattern"].get("String", "")) == 1
    return step["type"] in ("ByteFallback", "Fuse", "Metaspace", "WordPiece", "BPEDecoder")


def _is_byte(piece: str | None) -> bool:
    return piece is not None and re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece) is not None


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet (`bytes_to_unicode` in openai/gpt-2 `encoder.py`), read backwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def _byte_level_bytes(piece: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in piece)
    except KeyError:  # an added token, which is spelled in plain text
        return piece.encode()
