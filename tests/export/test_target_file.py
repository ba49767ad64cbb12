"""What is said before the work about a name that nothing can be written under."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import PenstockError, StorageError, UsageError
from penstock.export.target_file import check_target


@pytest.mark.parametrize(
    ("name", "overwrite", "kind", "says"),
    [
        ("out.bin", False, UsageError, "the name of an ONNX model ends in .onnx"),
        ("taken.onnx", False, UsageError, "exists"),
        ("folder.onnx", True, UsageError, "exists"),
        ("source.onnx", True, UsageError, "is the source"),
        ("link.onnx", True, UsageError, "is the source"),
        ("missing/out.onnx", False, StorageError, "no such folder"),
    ],
)
def test_refused(
    tmp_path: Path, name: str, overwrite: bool, kind: type[PenstockError], says: str
) -> None:
    (tmp_path / "source.onnx").touch()
    (tmp_path / "taken.onnx").touch()
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "link.onnx").symlink_to(tmp_path / "source.onnx")
    with pytest.raises(kind, match=says):
        check_target(tmp_path / "source.onnx", tmp_path / name, overwrite, ".onnx", "an ONNX model")


def test_taken_names_may_be_given_to_those_who_ask(tmp_path: Path) -> None:
    (tmp_path / "OUT.ONNX").touch()
    check_target(tmp_path / "absent", tmp_path / "OUT.ONNX", True, ".onnx", "an ONNX model")
    check_target(tmp_path / "absent", tmp_path / "new.onnx", False, ".onnx", "an ONNX model")
    assert [path.name for path in tmp_path.iterdir()] == ["OUT.ONNX"]
