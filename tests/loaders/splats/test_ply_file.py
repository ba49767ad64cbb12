"""PLY headers: what is refused, and columns as plyfile reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import FormatError, StorageError
from penstock.loaders.splats.model import MAX_SPLATS
from penstock.loaders.splats.ply_file import BLOCK, MAX_PROPERTIES, read_ply_header
from tests.loaders.splats.splat_builder import ply_bytes, write
from tests.needs import needs

COLUMNS = [("float", "x"), ("uchar", "flag"), ("double", "y")]
ROWS = [(1.5, 7, -2.25), (2.5, 255, 1e300), (-0.5, 0, 3.0)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_columns_of_any_type_and_order(tmp_path: Path, order: str) -> None:
    data = ply_bytes(
        [("other", [("int", "a")], [(1,), (2,)]), ("vertex", COLUMNS, ROWS)], ["a b"], order
    )
    ply = read_ply_header(write(tmp_path, "a.ply", data))
    vertex = ply.element("vertex")
    flags, both = ply.read_groups(vertex, [["flag"], ["y", "x"]])
    assert flags.tolist() == [[7], [255], [0]]
    assert both[0].tolist() == [-2.25, 1.5] and both[1].tolist() == [np.inf, 2.5]
    assert ply.comments == ("a b",) and ply.element("other").count == 2


def test_carriage_returns_and_more_rows_than_a_block(tmp_path: Path) -> None:
    count = BLOCK + 5
    header = f"ply\r\nformat binary_little_endian 1.0\r\nelement vertex {count}\r\n"
    header += "property float x\r\nend_header\r\n"
    values = np.arange(count, dtype="<f4")
    ply = read_ply_header(write(tmp_path, "a.ply", header.encode() + values.tobytes()))
    assert np.array_equal(ply.read(ply.element("vertex"), ["x"])[:, 0], values)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["format ascii 1.0"], "save it as binary"),
        (["format binary_middle_endian 1.0"], "expected one of"),
        (["element vertex -1"], "how many"),
        (["element vertex 1e3"], "how many"),
        (["element vertex 99999999999999999999"], "how many"),
        ([f"element vertex {MAX_SPLATS + 1}"], "more than"),
        (["element vertex 1", "element vertex 1"], "such an element before"),
        (["property float x"], "before any element"),
        (["element vertex 1", "property list uchar int a"], "no lists"),
        (["element vertex 1", "property half x"], "one of the types"),
        (["element vertex 1", "property float"], "one of the types"),
        (["element vertex 1", "property float x", "property float x"], "such a property before"),
        (["surprise"], "expected format, comment"),
        (["element vertex 5", "property float x"], "needs 20 bytes but the file ends"),
    ],
)
def test_bad_headers_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    text = "\n".join(["ply", "format binary_little_endian 1.0", *lines, "end_header", ""])
    with pytest.raises(FormatError, match=message):
        read_ply_header(write(tmp_path, "a.ply", text.encode()))


def test_too_many_properties_are_refused(tmp_path: Path) -> None:
    columns = [("float", f"p{i}") for i in range(MAX_PROPERTIES + 1)]
    with pytest.raises(FormatError, match="more than 512 properties"):
        read_ply_header(write(tmp_path, "a.ply", ply_bytes([("vertex", columns, [])])))


@pytest.mark.parametrize("data", [b"", b"ply", b"PLY\n", b"ply\nformat binary_little_endian 1.0\n"])
def test_what_is_no_ply_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(FormatError):
        read_ply_header(write(tmp_path, "a.ply", data))


def test_a_header_without_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no format line"):
        read_ply_header(write(tmp_path, "a.ply", b"ply\nelement a 0\nend_header\n"))


def test_a_header_without_end_is_not_read_for_ever(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no end_header"):
        read_ply_header(write(tmp_path, "a.ply", b"ply\n" + b"comment a\n" * 100_000))


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.ply"):
        with pytest.raises(StorageError, match="cannot be read"):
            read_ply_header(path)


def test_a_file_that_shrinks_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.ply", ply_bytes([("vertex", COLUMNS, ROWS)]))
    ply = read_ply_header(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="cut short"):
        ply.read(ply.element("vertex"), ["x"])


def test_missing_elements_and_columns_are_named(tmp_path: Path) -> None:
    ply = read_ply_header(write(tmp_path, "a.ply", ply_bytes([("vertex", COLUMNS, ROWS)])))
    with pytest.raises(FormatError, match="no element 'chunk', only vertex"):
        ply.element("chunk")
    with pytest.raises(FormatError, match="no property z"):
        ply.read(ply.element("vertex"), ["x", "z"])


@pytest.mark.parametrize("text", ["t", "t one", "t nan", "t 1 inf"])
def test_comments_that_should_be_numbers(tmp_path: Path, text: str) -> None:
    ply = read_ply_header(write(tmp_path, "a.ply", ply_bytes([], ["u 1 2.5", text])))
    assert ply.numbers("u") == [1, 2.5] and ply.numbers("v") is None
    with pytest.raises(FormatError, match="should give numbers"):
        ply.numbers("t")


@needs("plyfile")
def test_plyfile_reads_the_same(tmp_path: Path) -> None:
    import plyfile

    path = write(tmp_path, "a.ply", ply_bytes([("vertex", COLUMNS, ROWS)]))
    theirs = plyfile.PlyData.read(str(path))["vertex"]
    ply = read_ply_header(path)
    for name in ("x", "flag"):
        assert np.array_equal(ply.read(ply.element("vertex"), [name])[:, 0], theirs[name])


def test_the_builder_packs_rows(tmp_path: Path) -> None:
    assert ply_bytes([("vertex", COLUMNS, ROWS)]).endswith(struct.pack("<fBd", *ROWS[-1]))
