"""The tokenizer against the Java one, whose tokens `make_fixtures.py` has written down."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.export.metrics.coco_captions import read_coco_references, read_coco_results
from penstock.export.metrics.ptb_tokenizer import DROPPED, tokenize_ptb

FIXTURES = Path(__file__).resolve().parent / "fixtures"
HARD: dict[str, str] = json.loads((FIXTURES / "hard_tokens.json").read_text())


@pytest.mark.parametrize("text", HARD)
def test_hard_texts(text: str) -> None:
    assert " ".join(tokenize_ptb(text)) == HARD[text]


def test_every_caption_of_coco(shared_dir: Path) -> None:
    oracle: dict[str, Any] = json.loads((FIXTURES / "oracle_sets.json").read_text())
    coco = shared_dir / "data" / "photos" / "coco"
    full = read_coco_references(coco / "captions_val2017_full.json")
    texts = [text.replace("\n", " ") for many in full.values() for text in many]
    texts += read_coco_results(coco / "fakecap_results.json").values()
    assert len(texts) == oracle["captions"]
    tokens = "\n".join(" ".join(tokenize_ptb(text)) for text in texts)
    assert hashlib.sha256(tokens.encode()).hexdigest() == oracle["tokens_sha256"]


@given(st.text())
def test_any_text_has_tokens(text: str) -> None:
    for token in tokenize_ptb(text):
        assert token and token not in DROPPED
        assert token == token.lower()
        assert not set(token) & set(" \t\r\n")


@given(st.text(alphabet="ab'.,!?()-$%&/\"1 \n"))
def test_space_around_a_text_does_not_matter(text: str) -> None:
    assert tokenize_ptb(f"  {text}\n") == tokenize_ptb(text)


@given(st.lists(st.sampled_from(["dog", "Runs", "green", "grass", "42", "re-use", "café"])))
def test_plain_words_are_their_own_tokens(words: list[str]) -> None:
    assert tokenize_ptb(" ".join(words)) == [word.lower() for word in words]


@given(st.lists(st.sampled_from(["dog", "runs"])), st.sampled_from([".", "!", "?", ",", ";", ":"]))
def test_punctuation_is_left_out(words: list[str], mark: str) -> None:
    assert tokenize_ptb(" ".join(words) + f" {mark}") == words
