"""Document frequencies: counted, kept in a file, and files that are not such."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from penstock.errors import FormatError, StorageError, UsageError
from penstock.export.metrics.caption_set import CaptionPair, CaptionSet
from penstock.export.metrics.cider import cider_d
from penstock.export.metrics.document_frequency import DocumentFrequencies

IMAGES = [[["a", "dog"], ["a", "big", "dog"]], [["a", "cat"]], [["the", "cat", "a", "cat"]]]


def test_an_image_counts_once() -> None:
    frequencies = DocumentFrequencies.of_references(IMAGES)
    assert frequencies.images == 3
    assert frequencies.counts[("a",)] == 3
    assert frequencies.counts[("cat",)] == 2
    assert frequencies.counts[("a", "cat")] == 2
    assert frequencies.counts[("a", "big", "dog")] == 1


def test_weights() -> None:
    frequencies = DocumentFrequencies.of_references(IMAGES)
    assert frequencies.weigh(("a",)) == 0
    assert frequencies.weigh(("cat",)) == pytest.approx(math.log(3 / 2))
    assert frequencies.weigh(("big",)) == frequencies.weigh(("never", "seen")) == math.log(3)


def test_a_file_gives_the_same_back(tmp_path: Path) -> None:
    frequencies = DocumentFrequencies.of_references([*IMAGES, [["caf\u00e9", "1\u00a01/2"]]])
    frequencies.save(tmp_path / "df.json")
    assert DocumentFrequencies.load(tmp_path / "df.json") == frequencies
    assert [path.name for path in tmp_path.iterdir()] == ["df.json"]


def test_precomputed_counts_score_a_single_image() -> None:
    one = CaptionSet({1: CaptionPair(["a", "big", "dog"], [["a", "big", "dog"]])})
    assert cider_d(one).corpus == 0  # each word is in all of the images: one
    score = cider_d(one, DocumentFrequencies.of_references(IMAGES)).corpus
    assert score == pytest.approx(10 * 3 / 4)  # it has no run of four words


def test_the_references_own_counts_are_the_default() -> None:
    captions = CaptionSet(
        {image: CaptionPair(["a", "cat"], references) for image, references in enumerate(IMAGES)}
    )
    assert cider_d(captions) == cider_d(captions, DocumentFrequencies.of_references(IMAGES))


def test_counts_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="of 0 images"):
        DocumentFrequencies.of_references([])
    with pytest.raises(UsageError, match="'a dog' is counted in 4 images; expected 1 to 3"):
        DocumentFrequencies(3, {("a", "dog"): 4})


GOOD = {"format": "penstock-document-frequencies", "version": 1, "images": 3, "counts": {"a": 2}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, 'no "format"'),
        ({"version": 2}, "version 2; this Penstock reads 1"),
        ({"images": "3"}, 'a number "images"'),
        ({"images": True}, 'a number "images"'),
        ({"images": 0}, "of 0 images"),
        ({"counts": [1]}, 'an object "counts"'),
        ({"counts": {"a b": 1.5}}, "count of 'a b' is 1.5"),
        ({"counts": {"a b": 9}}, "'a b' is counted in 9 images"),
    ],
)
def test_damaged_files(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "df.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(FormatError, match=message) as caught:
        DocumentFrequencies.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"3"])
def test_files_of_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "df.json").write_bytes(content)
    with pytest.raises(FormatError, match="df.json"):
        DocumentFrequencies.load(tmp_path / "df.json")


def test_files_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        DocumentFrequencies.load(tmp_path / "missing.json")
    with pytest.raises(StorageError, match="cannot be written"):
        DocumentFrequencies(1, {}).save(tmp_path / "missing" / "df.json")
