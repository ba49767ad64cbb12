"""Which photos are meant by files and folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.errors import StorageError
from penstock.runtime.caption.photo import read_photo
from penstock.runtime.caption.photo_files import find_photos

pytest.importorskip("PIL.Image", reason="Pillow is an extra")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.jpg", "A.JPEG", "a/z.png", "a/deep/er/y.webp", "phone.HEIC", "scan.tif",
        "notes.txt", "movie.mp4", "paper.pdf", "drawing.eps", "jpg", ".hidden.jpg",
        ".thumbnails/t.jpg", "a/.cache/t.png", "Thumbs.db",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_a_folder_gives_its_photos_in_order(folder: Path) -> None:
    found = [str(path.relative_to(folder)) for path in find_photos([folder])]
    assert found == ["A.JPEG", "a/deep/er/y.webp", "a/z.png", "b.jpg", "phone.HEIC", "scan.tif"]


def test_files_are_taken_as_they_are(folder: Path) -> None:
    """In the order given, whatever their names, there or not, and each once."""
    named = [folder / "notes.txt", folder / ".hidden.jpg", folder / "missing.jpg"]
    assert find_photos([*named, *named]) == named
    mixed = find_photos([folder / "b.jpg", folder / "a", folder / "b.jpg", folder])
    names = ["b.jpg", "a/deep/er/y.webp", "a/z.png", "A.JPEG", "phone.HEIC", "scan.tif"]
    assert mixed == [folder / name for name in names]


def test_nothing(tmp_path: Path) -> None:
    assert find_photos([tmp_path]) == find_photos([]) == []


def test_links(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of files are followed, of folders not: they may lead in a circle."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "far.jpg").touch()
    (folder / "a" / "up").symlink_to(folder)
    (folder / "linked.jpg").symlink_to(outside / "far.jpg")
    (folder / "album").symlink_to(outside)
    assert folder / "linked.jpg" in find_photos([folder])
    assert len(find_photos([folder])) == 7
    assert find_photos([folder / "album"]) == [folder / "album" / "far.jpg"]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9\n.jpg"))
    path.touch()
    assert find_photos([tmp_path]) == [path]


def test_a_folder_that_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not passed over in silence: reading it says why."""
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert folder / "a" / "deep" in find_photos([folder])
    with pytest.raises(StorageError, match="deep: this is a folder"):
        read_photo(folder / "a" / "deep")
