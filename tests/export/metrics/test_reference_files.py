"""What people say about photos, by the names of files: COCO's JSON and CSV."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import FormatError, StorageError
from penstock.export.metrics.reference_files import read_references


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text(
        '\ufeffimage,caption\na.jpg,A dog runs .\nb.jpg,"A cat, and a mat"\na.jpg,"a ""dog"""\n',
        encoding="utf-8",
    )
    assert read_references(path) == {
        "a.jpg": ["A dog runs .", 'a "dog"'],
        "b.jpg": ["A cat, and a mat"],
    }


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 5, "file_name": "a.jpg"},
                   {"id": 9, "file_name": "bare.jpg"}],
        "annotations": [{"image_id": 5, "caption": "a dog"}, {"image_id": 7, "caption": "a cat"},
                        {"image_id": 5, "caption": "the dog"}, {"image_id": 1, "caption": "x"}],
        **changes,
    }  # fmt: skip


def test_coco(tmp_path: Path) -> None:
    path = tmp_path / "captions.JSON"
    path.write_text(json.dumps(coco()))
    assert read_references(path) == {"b.jpg": ["a cat"], "a.jpg": ["a dog", "the dog"]}


def test_of_the_shared_photos(shared_dir: Path) -> None:
    photos = shared_dir / "data" / "photos"
    flickr = read_references(photos / "flickr8k" / "captions.txt")
    assert len(flickr) == 875 and {len(texts) for texts in flickr.values()} == {5}
    val = read_references(photos / "coco" / "captions_val2017_subset.json")
    files = {path.name for path in (photos / "coco" / "val2017").glob("*.jpg")}
    assert len(val) == 211 and set(val) == files


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "photo,caption\na,b\n", "names no column 'image'"),
        ("a.csv", "image;caption\na;b\n", "names no column 'image'"),
        ("a.csv", "", "names no column 'image'"),
        ("a.csv", "image,caption\na.jpg\n", "line 2 has no image and caption"),
        ("a.csv", "image,caption\n,a dog\n", "line 2 has no image and caption"),
        ("a.json", "image,caption\n", "is not JSON"),
        ("a.json", "{}", 'a list "annotations"'),
        ("a.json", json.dumps(coco(images=None)), 'a list "images"'),
        ("a.json", json.dumps(coco(images=[{"id": 5}])), "image 0 has no"),
        ("a.json", json.dumps(coco(images=[5])), "image 0 has no"),
    ],
)
def test_what_is_neither(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=f"{name}.*{said}"):
        read_references(tmp_path / name)


def test_no_text_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"image,caption\n\xff\xfe,x\n")
    with pytest.raises(FormatError, match="is not CSV in UTF-8"):
        read_references(tmp_path / "a.csv")
    for name in ("none.csv", "none.json"):
        with pytest.raises(StorageError, match="cannot be read"):
            read_references(tmp_path / name)
