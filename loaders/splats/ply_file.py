"""PLY files of splats: the header, checked against the file's size, and columns read in blocks.

The format: http://paulbourke.net/dataformats/ply/. Splat files are binary, of scalar properties.
plyfile maps what the header announces; here a header that announces more than the file has is
refused by name and offset, and a block of rows is converted before the next is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError
from penstock.loaders.splats.file_access import cut_short, file_error, open_file, take
from penstock.loaders.splats.model import MAX_SPLATS, Floats

MAX_HEADER_BYTES = 1 << 16  # the longest known, 161 columns and comments, have 6 KB
MAX_PROPERTIES = 512  # of an element
BLOCK = 1 << 15  # rows that are read at a time

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_HEADER_END = re.compile(rb"\nend_header\r?\n")


@dataclass(frozen=True)
class PlyElement:
    """A table of the file.

    Attributes:
        count: rows.
        offset: of its first row in the file.
        row: NumPy's type of a row, one field a property.
    """

    name: str
    count: int
    offset: int
    row: np.dtype[np.void]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.row.names or ()

    def has(self, *names: str) -> bool:
        return set(names) <= set(self.columns)

    def numbered(self, prefix: str) -> int:
        """How many columns are called prefix0, prefix1, ... without a gap."""
        count, columns = 0, set(self.columns)
        while f"{prefix}{count}" in columns:
            count += 1
        return count


@dataclass(frozen=True)
class PlyFile:
    """A checked header. Every element's rows lie inside the file."""

    path: Path
    size: int
    elements: dict[str, PlyElement]
    comments: tuple[str, ...]

    def element(self, name: str) -> PlyElement:
        """The element of this name.

        Raises:
            FormatError: the file has none.
        """
        if name not in self.elements:
            raise FormatError(
                f"{self.path}: the PLY header has no element '{name}', only "
                f"{', '.join(self.elements) or 'none'}; expected a file of splats"
            )
        return self.elements[name]

    def read(self, element: PlyElement, columns: Sequence[str]) -> Floats:
        """Columns as float32 [count, len(columns)], contiguous. See `read_groups`."""
        return self.read_groups(element, [columns])[0]

    def read_groups(self, element: PlyElement, groups: Sequence[Sequence[str]]) -> list[Floats]:
        """Groups of columns, each as float32 [count, columns of the group], in one pass.

        Raises:
            FormatError: there is no such column, or the file ends before its last row.
            StorageError: the file cannot be read.
        """
        self.check_columns(element, [name for group in groups for name in group])
        out = [np.empty((element.count, len(group)), np.float32) for group in groups]
        for begin, rows in self.blocks(element):
            with np.errstate(over="ignore", invalid="ignore"):  # of doubles: the model's check sees
                for group, array in zip(groups, out, strict=True):
                    for i, name in enumerate(group):
                        array[begin : begin + len(rows), i] = rows[name]
        return out

    def blocks(
        self, element: PlyElement, rows: int = BLOCK
    ) -> Iterator[tuple[int, NDArray[np.void]]]:
        """(index of the first, rows as they are stored), so many at a time.

        Raises:
            FormatError: the file was cut short since its header was read.
            StorageError: it cannot be read.
        """
        with open_file(self.path) as (handle, size):
            handle.seek(element.offset)
            for begin in range(0, element.count, rows):
                count = min(rows, element.count - begin)
                what = f"element '{element.name}'"
                data = take(self.path, handle, size, count * element.row.itemsize, what)
                yield begin, np.frombuffer(data, element.row)

    def check_columns(self, element: PlyElement, columns: Sequence[str]) -> None:
        """Refuse a file without these columns.

        Raises:
            FormatError: one is missing.
        """
        missing = [name for name in columns if not element.has(name)]
        if missing:
            raise FormatError(
                f"{self.path}: element '{element.name}' of the PLY header has no property "
                f"{', '.join(missing[:8])}; expected a file of splats"
            )

    def numbers(self, key: str) -> list[float] | None:
        """The numbers of a `comment KEY number ...`; None where there is no such comment.

        Raises:
            FormatError: what follows are no finite numbers.
        """
        for comment in self.comments:
            name, _, rest = comment.partition(" ")
            if name == key:
                try:
                    values = [float(word) for word in rest.split()]
                except ValueError:
                    values = []
                if not values or not all(map(math.isfinite, values)):
                    raise FormatError(
                        f"{self.path}: the PLY header's comment '{comment[:80]}' should give "
                        "numbers; export the file again"
                    )
                return values
        return None


def read_ply_header(path: Path) -> PlyFile:
    """Parse and check the header of a binary PLY file.

    Raises:
        FormatError: not PLY, text, damaged, cut short, or with lists.
        StorageError: it cannot be read.
    """
    with open_file(path) as (handle, size):
        head = handle.read(min(size, MAX_HEADER_BYTES))
    if not size:
        raise FormatError(f"{path}: the file is empty; fetch it again")
    if not re.match(rb"ply\r?\n", head):
        raise file_error(path, 0, f"not a PLY file (starts with {head[:4]!r}, expected b'ply')")
    end = _HEADER_END.search(head)
    if end is None:
        raise file_error(
            path,
            0,
            f"the PLY header has no end_header line in its first {len(head)} bytes; the file is "
            "cut short or damaged, fetch it again",
        )
    lines = head[: end.start()].decode("latin-1").replace("\r", "").split("\n")[1:]
    return _Parser(path, size).parse(lines, end.end())


class _Parser:
    """Reads the lines between `ply` and `end_header`."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size

    def fail(self, line: str, what: str) -> FormatError:
        return FormatError(f"{self.path}: PLY header line '{line[:80]}': {what}")

    def parse(self, lines: list[str], data_offset: int) -> PlyFile:
        order = ""
        comments: list[str] = []
        tables: list[tuple[str, int, list[tuple[str, str]]]] = []
        for line in lines:
            words = line.split()
            if not words:
                continue
            if words[0] in ("comment", "obj_info"):
                comments.append(line.strip().partition(" ")[2].strip())
            elif words[0] == "format":
                order = self.order(line, words)
            elif words[0] == "element":
                tables.append(self.element(line, words, [name for name, _, _ in tables]))
            elif words[0] == "property":
                if not tables:
                    raise self.fail(line, "a property before any element")
                self.property(line, words, tables[-1][2])
            else:
                raise self.fail(line, "expected format, comment, element or property")
        if not order:
            raise FormatError(f"{self.path}: the PLY header has no format line; it is damaged")
        return PlyFile(
            self.path, self.size, self.place(order, tables, data_offset), tuple(comments)
        )

    def order(self, line: str, words: list[str]) -> str:
        if len(words) == 3 and words[1] in ORDERS:
            return ORDERS[words[1]]
        if words[1:2] == ["ascii"]:
            raise self.fail(line, "a text PLY; save it as binary_little_endian")
        raise self.fail(line, f"expected one of {', '.join(ORDERS)}")

    def element(
        self, line: str, words: list[str], before: list[str]
    ) -> tuple[str, int, list[tuple[str, str]]]:
        if len(words) != 3 or not re.fullmatch("[0-9]{1,12}", words[2]):
            raise self.fail(line, "expected a name and how many there are")
        count = int(words[2])
        if count > MAX_SPLATS:
            raise self.fail(line, f"more than {MAX_SPLATS}; the file is damaged")
        if words[1] in before:
            raise self.fail(line, "there is such an element before")
        return words[1], count, []

    def property(self, line: str, words: list[str], columns: list[tuple[str, str]]) -> None:
        if words[1:2] == ["list"]:
            raise self.fail(line, "files of splats have no lists; this is a mesh")
        if len(words) != 3 or words[1] not in TYPES:
            raise self.fail(line, f"expected a name after one of the types {', '.join(TYPES)}")
        if words[2] in (name for name, _ in columns):
            raise self.fail(line, "there is such a property before")
        if len(columns) == MAX_PROPERTIES:
            raise self.fail(line, f"more than {MAX_PROPERTIES} properties of an element")
        columns.append((words[2], TYPES[words[1]]))

    def place(
        self,
        order: str,
        tables: list[tuple[str, int, list[tuple[str, str]]]],
        offset: int,
    ) -> dict[str, PlyElement]:
        """Where each element's rows are; all of them inside the file."""
        elements = {}
        for name, count, columns in tables:
            row = np.dtype([(column, order + kind) for column, kind in columns])
            nbytes = count * row.itemsize
            if nbytes > self.size - offset:
                what = f"element '{name}' of {count} rows"
                raise cut_short(self.path, offset, what, nbytes, self.size)
            elements[name] = PlyElement(name, count, offset, row)
            offset += nbytes
        return elements
