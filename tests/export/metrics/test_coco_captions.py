"""COCO's files of captions, and files that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.errors import FormatError, StorageError
from penstock.export.metrics.coco_captions import read_coco_references, read_coco_results


def written(content: object, folder: Path) -> Path:
    (folder / "captions.json").write_text(json.dumps(content))
    return folder / "captions.json"


def test_references_are_gathered_by_image(tmp_path: Path) -> None:
    pairs = [(5, "a dog"), (7, "a cat"), (5, "the dog")]
    entries = [{"image_id": image, "id": 0, "caption": text} for image, text in pairs]
    path = written({"info": {}, "annotations": entries}, tmp_path)
    assert read_coco_references(path) == {5: ["a dog", "the dog"], 7: ["a cat"]}


def test_results(tmp_path: Path) -> None:
    path = written([{"image_id": 5, "caption": "a dog"}], tmp_path)
    assert read_coco_results(path) == {5: "a dog"}


def test_two_results_of_an_image(tmp_path: Path) -> None:
    path = written([{"image_id": 5, "caption": "a dog"}] * 2, tmp_path)
    with pytest.raises(FormatError, match="two captions of image 5"):
        read_coco_results(path)


@pytest.mark.parametrize(
    "entry", [None, {}, {"image_id": 5}, {"image_id": "5", "caption": "a"}, {"caption": "a"}]
)
def test_entries_without_image_or_caption(entry: object, tmp_path: Path) -> None:
    good = {"image_id": 4, "caption": "a"}
    with pytest.raises(FormatError, match="entry 1 has no"):
        read_coco_results(written([good, entry], tmp_path))
    with pytest.raises(FormatError, match="entry 1 has no"):
        read_coco_references(written({"annotations": [good, entry]}, tmp_path))


def test_each_file_in_place_of_the_other(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expected a list of captions, not dict"):
        read_coco_results(written({"annotations": []}, tmp_path))
    with pytest.raises(FormatError, match='expected an object with a list "annotations"'):
        read_coco_references(written([], tmp_path))


def test_no_json_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("nothing")
    with pytest.raises(FormatError, match="is not JSON"):
        read_coco_results(tmp_path / "a.json")
    with pytest.raises(StorageError, match="cannot be read"):
        read_coco_references(tmp_path / "b.json")
