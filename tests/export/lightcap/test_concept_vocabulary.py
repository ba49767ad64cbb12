"""Lists of concept names."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import FormatError, StorageError
from penstock.export.lightcap.concept_vocabulary import read_concepts


def test_first_names_in_order_once(tmp_path: Path) -> None:
    objects, attributes = tmp_path / "objects.txt", tmp_path / "attributes.txt"
    objects.write_bytes(b"\xef\xbb\xbfstop sign,stopsign\r\n\ncat\n  fire   hydrant \ncat,kitty\n")
    attributes.write_text("gray,grey\ncat\ndouble decker,double-decker")
    assert read_concepts(objects) == ("stop sign", "cat", "fire hydrant")
    assert read_concepts(objects, attributes)[3:] == ("gray", "double decker")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\n \n", "no concept in it"),
        (b"cat\n,dog\n", "line 2 begins with ',dog'"),
        (b"cat\n" + b"x" * 101, "line 2 begins with 'xxx.*at most 100 characters"),
        (b"cat\x00dog", r"line 1 begins with 'cat\\x00dog'"),
        (b"caf\xe9\n", "not UTF-8 at byte 3"),
    ],
)
def test_what_is_no_list(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=said):
        read_concepts(path)


def test_too_much_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        read_concepts(tmp_path / "none.txt")
    monkeypatch.setattr("penstock.export.lightcap.concept_vocabulary.MAX_FILE_BYTES", 9)
    (tmp_path / "names.txt").write_text("cat\n" * 9)
    with pytest.raises(FormatError, match="is over 9 bytes"):
        read_concepts(tmp_path / "names.txt")


def test_visual_genome(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "vocab"
    paths = [folder / f"visual_genome_{kind}_vocab.txt" for kind in ("objects", "attributes")]
    names = read_concepts(*paths)
    assert len(names) == len(set(names)) > 1900
    stored = {line.split(",")[0] for path in paths for line in path.read_text().splitlines()}
    assert stored == set(names)
