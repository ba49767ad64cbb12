"""Captions and references that do not go together are refused, with the ids."""

from __future__ import annotations

import pytest

from penstock.errors import UsageError
from penstock.export.metrics.caption_scores import score_captions
from penstock.export.metrics.caption_set import CaptionPair, CaptionSet


def test_nothing_to_score() -> None:
    with pytest.raises(UsageError, match="no captions to score"):
        score_captions({}, {})


def test_ids_that_differ() -> None:
    with pytest.raises(UsageError) as caught:
        score_captions({1: "a dog", 2: "a cat"}, {2: ["a cat"], 3: ["a bird"]})
    message = str(caught.value)
    assert "1 of 2 captions have no references: 1;" in message
    assert "1 of 2 images have references but no caption: 3." in message


def test_ids_of_another_type_are_shown_as_such() -> None:
    with pytest.raises(UsageError, match="no references: '1'; .* no caption: 1"):
        score_captions({"1": "a dog"}, {1: ["a dog"]})  # type: ignore[misc]


def test_many_ids_are_cut_short() -> None:
    with pytest.raises(UsageError, match=r"9 of 10 captions .*: 1, 2, 3, 4, 5, \.\.\."):
        score_captions({image: "a dog" for image in range(10)}, {0: ["a dog"]})


def test_an_image_without_references() -> None:
    with pytest.raises(UsageError, match="1 of 2 images have an empty list of references: 7"):
        score_captions({7: "a dog", 8: "a dog"}, {7: [], 8: ["a dog"]})
    with pytest.raises(UsageError, match="empty list of references"):
        CaptionSet({7: CaptionPair(["a"], [])})


def test_one_string_for_references() -> None:
    with pytest.raises(UsageError, match="references of image 7 are one string"):
        score_captions({7: "a dog"}, {7: "a dog"})


def test_another_tokenizer() -> None:
    captions = CaptionSet.from_texts({7: "A b."}, {7: ["c D."]}, tokenize=str.split)
    assert captions.pairs[7] == CaptionPair(["A", "b."], (["c", "D."],))
