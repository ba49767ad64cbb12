"""Where a file is mapped: found by device and inode, under any name."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from penstock.errors import StorageError
from penstock.loaders.file_mapping import MappedRange, mapped_ranges, new_mapping

PAGE = mmap.PAGESIZE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a file with spaces"
    path.write_bytes(bytes(5 * PAGE + 100))
    return path


def mapped(path: Path, offset: int = 0) -> mmap.mmap:
    with open(path, "rb") as handle:
        return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ, offset=offset)


def test_a_mapping_is_found_while_it_is_there(file: Path) -> None:
    assert mapped_ranges(file) == []
    with mapped(file, PAGE):
        (found,) = mapped_ranges(file)
        assert (found.offset, found.nbytes) == (PAGE, 5 * PAGE)
        assert found.address % PAGE == 0
    assert mapped_ranges(file) == []


def test_a_link_and_a_new_name_are_the_same_file(file: Path, tmp_path: Path) -> None:
    link, moved = tmp_path / "link", tmp_path / "moved"
    link.symlink_to(file)
    with mapped(link):
        assert mapped_ranges(link) == mapped_ranges(file) != []
        file.rename(moved)
        assert len(mapped_ranges(moved)) == 1
        file.write_bytes(b"another file of the old name")
        assert mapped_ranges(file) == []


def test_the_second_mapping_is_told_from_the_first(file: Path) -> None:
    with mapped(file):
        before = mapped_ranges(file)
        with mapped(file):
            after = mapped_ranges(file)
            (new,) = new_mapping(before, after, file).pieces
            assert new in after and new not in before and new.nbytes == 6 * PAGE


def test_a_mapping_may_have_lost_pieces() -> None:
    name = Path("m.gguf")
    assert new_mapping([], [], name).pieces == ()
    first, next_to_it, far = (MappedRange(n * PAGE, (n - 2) * PAGE, PAGE) for n in (3, 4, 9))
    found = new_mapping([], [far, first, next_to_it], name)
    assert found.pieces == (MappedRange(3 * PAGE, PAGE, 2 * PAGE), far)
    assert found.span == MappedRange(3 * PAGE, PAGE, 7 * PAGE)
    assert found.holds(PAGE, 2 * PAGE) and found.holds(7 * PAGE + 5, PAGE - 5)
    assert not any(found.holds(*at) for at in ((PAGE - 1, 2), (3 * PAGE - 1, 2), (5 * PAGE, 1)))


def test_two_new_mappings_are_refused() -> None:
    ranges = [MappedRange(n * PAGE, 0, PAGE) for n in range(1, 3)]
    with pytest.raises(StorageError, match="m.gguf: llama.cpp mapped the file more than once"):
        new_mapping([], ranges, Path("m.gguf"))


def test_a_system_without_the_list_is_told_plainly(file: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing: cannot be read .*needed to stream"):
        mapped_ranges(file, tmp_path / "nothing")


def test_a_device_that_only_the_list_shows(file: Path, tmp_path: Path) -> None:
    """btrfs and overlays: the list has the device of the whole, stat that of a subvolume."""
    inode, maps = os.stat(file).st_ino, tmp_path / "maps"
    lines = [
        "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 ",
        f"7f0000002000-7f0000004000 r--s 00003000 fffe:01 {inode} {file}",
        f"7f0000005000-7f0000006000 r--s 00000000 fffe:01 {inode} /another/file",
        f"7f0000007000-7f0000008000 r--s 00000000 fffe:01 {inode + 1} {file}",
        "",
    ]
    maps.write_text("\n".join(lines))
    assert mapped_ranges(file, maps) == [MappedRange(0x7F0000002000, 0x3000, 0x2000)]
