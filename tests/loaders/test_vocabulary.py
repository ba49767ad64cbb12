"""A tokenizer is counted by its keys, which are then forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.loaders.vocabulary import (
    HEAP_BYTES,
    LONGEST,
    MERGE_BYTES,
    TOKEN_BYTES,
    TRIE_BYTES,
    Vocabulary,
    measure_vocabulary,
)
from penstock.loaders.weight_map import LONGEST_ARRAY, map_weights
from tests.bundle_builder import Parts, Stored, serialize

START = "tokenizer.ggml."


def written(folder: Path, **keys: Any) -> Path:
    parts = Parts({"general.architecture": "llama"})
    parts.metadata |= {f"{START}{key}": value for key, value in keys.items()}
    parts.tensors["a.weight"] = Stored((4,), 0, bytes(16))
    path = folder / "m.gguf"
    path.write_bytes(serialize(parts))
    return path


def measured(folder: Path, **keys: Any) -> Vocabulary:
    return map_weights(written(folder, **keys)).vocabulary


def test_tokens_and_merges_are_counted(tmp_path: Path) -> None:
    words = ["a", "b" * 15, "c" * 16, "é" * 10]
    merges = ["a b", "b b", "c" * 16 + " d"]
    found = measured(tmp_path, model="gpt2", tokens=words, merges=merges)
    assert (found.kind, found.tokens, found.merges, found.longest) == ("gpt2", 4, 3, 20)
    heap = 3 * (16 + HEAP_BYTES + 20 + HEAP_BYTES) + 16 + HEAP_BYTES
    assert found.nbytes == 4 * TOKEN_BYTES + 3 * MERGE_BYTES + heap


def test_a_tree_of_texts_takes_more(tmp_path: Path) -> None:
    plain, tree = (measured(tmp_path, model=m, tokens=["ab", "abc"]) for m in ("llama", "rwkv"))
    assert tree.nbytes == plain.nbytes + 5 * TRIE_BYTES


@pytest.mark.parametrize("keys", [{}, {"model": 7, "tokens": "words", "merges": 1.5}])
def test_a_file_without_a_tokenizer(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert measured(tmp_path, **keys) == Vocabulary() and Vocabulary().longest == LONGEST


def test_what_is_large_is_not_kept(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        tokens=["a", "b"],
        scores=np.zeros(LONGEST_ARRAY + 1, np.float32),
        few=np.arange(LONGEST_ARRAY, dtype=np.int32),
        bos_token_id=1,
    )
    (file,) = map_weights(path).files
    assert {key for key in file.metadata if key.startswith(START)} == {
        f"{START}few", f"{START}bos_token_id",
    }  # fmt: skip
    assert file.header == b"" and not file.value_offsets and "a.weight" in file.tensors


def test_the_header_itself_is_left_alone(tmp_path: Path) -> None:
    from penstock.loaders.gguf_file import read_gguf

    file = read_gguf(written(tmp_path, tokens=["a", "b"]))
    assert measure_vocabulary(file).tokens == 2 and file.header
    assert file.metadata[f"{START}tokens"] == ["a", "b"]
