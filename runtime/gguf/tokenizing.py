"""Text to llama.cpp's tokens, whatever the text is: too long a one is refused, not crashed on.

llama.cpp cuts text into words with std::regex, for many vocabularies. GCC's calls itself once or
twice for each character of a match: 320 bytes of stack, so a word of 26,000 letters is past the
end of the usual 8 MiB, and the process is gone. So long lines get a thread with a stack for them,
whose pages are memory only once they are used, and lines that are longer still are refused.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable
from typing import Any

from penstock.errors import ContextError, UsageError
from penstock.loaders.vocabulary import Vocabulary

PLAIN_CHARS = 1024  # of a line that fits the stack of any thread
MOST_CHARS = 1 << 17
STACK_PER_CHAR = 512  # 320 were measured, for each of llama.cpp's expressions
STACK_BASE = 1 << 20

# Whose words are not cut by expressions (llama.cpp's names of kinds of vocabularies).
_WITHOUT_WORDS = frozenset({"llama", "bert", "t5", "rwkv", "plamo2", "none"})
# No match of any of llama.cpp's expressions goes on from a line's end to a letter or digit (but for
# one that may begin with the line's end).
_LINE = re.compile(r"\n(?=[^\W_])")
_stack_size = threading.Lock()  # it is the process's


class GgufTokenizer:
    """The vocabulary of one file.

    Args:
        context: tokens that a text may have.
    """

    def __init__(self, lib: Any, vocabulary: Vocabulary, context: int) -> None:
        self._lib = lib
        self._context = context
        self._longest = vocabulary.longest
        self._has_words = vocabulary.kind not in _WITHOUT_WORDS

    def encode(self, vocab: Any, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """The tokens of a text.

        Args:
            vocab: llama.cpp's handle.

        Raises:
            ContextError: so long a text cannot fit the context.
            UsageError: a line of it is too long for llama.cpp.
        """
        raw = text.encode()
        if len(raw) > self._context and len(raw) > self._context * self._longest:
            raise ContextError(
                f"the prompt has {len(raw)} bytes, the context of {self._context} tokens holds "
                f"{self._context * self._longest} at most; shorten it, or load the model with "
                "a larger context"
            )
        chars = longest_line(text) if self._has_words else 0
        if chars > MOST_CHARS:
            raise UsageError(
                f"the prompt has a line of {chars} characters; llama.cpp tokenizes lines of "
                f"{MOST_CHARS} at most with this vocabulary: put line ends into it"
            )
        if chars <= PLAIN_CHARS:
            return self._encode(vocab, raw, add_special, parse_special)
        return _with_stack(
            STACK_BASE + STACK_PER_CHAR * chars,
            lambda: self._encode(vocab, raw, add_special, parse_special),
        )

    def _encode(self, vocab: Any, raw: bytes, add_special: bool, parse_special: bool) -> list[int]:
        room = len(raw) + 8
        while True:
            out = (ctypes.c_int32 * room)()
            count = self._lib.llama_tokenize(
                vocab, raw, len(raw), out, room, add_special, parse_special
            )
            if count >= 0:
                return list(out[:count])
            if -count <= room:
                raise UsageError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes")
            room = -count


def longest_line(text: str) -> int:
    """Characters that one match of an expression can hold, at most."""
    longest = begin = 0
    for end in _LINE.finditer(text):
        longest, begin = max(longest, end.end() - begin), end.end()
    return max(longest, len(text) - begin)


def _with_stack(nbytes: int, function: Callable[[], list[int]]) -> list[int]:
    """Call a function on a stack of at least so many bytes."""
    done: list[list[int] | BaseException] = []

    def call() -> None:
        try:
            done.append(function())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=call, name="penstock-tokenizer")
    with _stack_size:
        before = threading.stack_size(-(-nbytes >> 16) << 16)  # in pages of any system
        try:
            thread.start()
        except RuntimeError:
            raise UsageError(
                f"the prompt has a line for which llama.cpp needs {nbytes} bytes of stack, and the "
                "system does not give them; put line ends into it"
            ) from None
        finally:
            threading.stack_size(before)
    try:
        thread.join()
    finally:
        thread.join()  # interrupted: it still uses the model
    (found,) = done
    if isinstance(found, BaseException):
        raise found
    return found
