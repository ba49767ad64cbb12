"""What a tokenizer's keys hold, in figures: the keys themselves are large, and llama.cpp has them.

The bytes of an entry were measured with llama-cpp-python 0.3.36 on vocabularies of 20,000 to
128,000 tokens, with and without merges, and are a little above what was found.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.loaders.gguf_file import GGUFFile

TOKEN_BYTES = 176  # its row, its place in the map of texts, and its text once more
MERGE_BYTES = 128
STRING_BYTES = 15  # of text lie inside a string of C++; a longer one has memory of its own
HEAP_BYTES = 24  # what the system adds to that
COPIES = 3  # of a token's text
TRIE_BYTES = 100  # for each byte of text, where the texts are kept as a tree
TRIES = frozenset({"rwkv", "t5", "plamo2"})
LONGEST = 1 << 10  # where the file has no tokens


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.

    Attributes:
        kind: llama.cpp's name of it, '' where the file has none.
        longest: bytes of text that one token can stand for, at most.
        nbytes: what llama.cpp keeps of it in memory.
    """

    kind: str = ""
    tokens: int = 0
    merges: int = 0
    longest: int = LONGEST
    nbytes: int = 0


def measure_vocabulary(file: GGUFFile) -> Vocabulary:
    """Count what the keys of a file hold."""
    kind = file.metadata.get("tokenizer.ggml.model")
    tokens, merges = (_strings(file, key) for key in ("tokens", "merges"))
    texts = [len(token.encode()) for token in tokens]
    nbytes = TOKEN_BYTES * len(tokens) + MERGE_BYTES * len(merges)
    nbytes += COPIES * sum(_heap_bytes(text) for text in texts)
    nbytes += sum(_heap_bytes(len(half.encode())) for m in merges for half in m.split(" ", 1))
    if kind in TRIES:
        nbytes += TRIE_BYTES * sum(texts)
    return Vocabulary(
        kind=kind if isinstance(kind, str) else "",
        tokens=len(tokens),
        merges=len(merges),
        longest=max(texts, default=LONGEST),
        nbytes=nbytes,
    )


def _strings(file: GGUFFile, name: str) -> list[str]:
    value = file.metadata.get(f"tokenizer.ggml.{name}")
    return value if isinstance(value, list) else []


def _heap_bytes(length: int) -> int:
    return length + HEAP_BYTES if length > STRING_BYTES else 0
