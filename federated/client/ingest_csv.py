"""Windows from a CSV file with a header line: one row a window, or one row a point in time.

    x0,x1,...,x42,label           one row a window of 43 values; `--shape 9x128` folds them
    ax,ay,az,label                `--window 128 --step 64`: rows become windows [3, 128]

Every column but the label's is a value. An empty label is none. A window over time is labelled when
all of its rows have the same label.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError, UsageError
from penstock.federated.client.labels import LabelCodes

DEFAULT_LABEL = "label"
MOST_COLUMNS = 1 << 16
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class CsvLayout:
    """How rows become windows.

    Attributes:
        label: the label's column; the file may lack it, then nothing is labelled.
        ignore: columns that are no values: time stamps, users.
        shape: of one window, for one row a window; empty: [columns].
        window, step: rows of a window and from one to the next, for one row a point in time; 0:
            one row a window.
    """

    label: str = DEFAULT_LABEL
    ignore: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    window: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if self.window < 0 or self.step < 0 or (self.step and not self.window):
            raise UsageError(
                f"window is {self.window} and step {self.step}, expected positive row counts, and "
                "a window where there is a step"
            )
        if self.window and self.shape:
            raise UsageError("give a shape or a window: a window's shape is [columns, rows]")


def parse_shape(text: str) -> tuple[int, ...]:
    """'9x128' as (9, 128).

    Raises:
        UsageError: not such a text.
    """
    parts = text.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"the shape {text!r} is none; write it as 9x128")
    return tuple(int(part) for part in parts)


def read_csv(
    path: Path, codes: LabelCodes, layout: CsvLayout, most_bytes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The windows [n, *shape] and their labels [n], -1 where there is none.

    Raises:
        FormatError: not such a file, no header, a row of another length, a value that is no finite
            number, a label that is not known, or too large: says which line and column.
    """
    values, labels = array("f"), array("q")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for line, row, label in _rows(csv.reader(file, strict=True), path, layout):
                values.extend(row)
                labels.append(codes.from_text(label, f"{path}: line {line}, column {layout.label}"))
                if len(values) * 4 > most_bytes:
                    raise FormatError(
                        f"{path}: more than {most_bytes} bytes of values by line {line}; split it"
                    )
    except FileNotFoundError:
        raise FormatError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except csv.Error as error:
        raise FormatError(f"{path}: not a CSV file: {error}") from error
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error}") from error
    if not labels:
        raise FormatError(f"{path}: has no row under its header")
    table = np.array(values, np.float32).reshape(len(labels), -1)
    classes = np.array(labels, np.int64)
    if layout.window:
        return _windows(path, table, classes, layout)
    if layout.shape:
        columns = table.shape[1]
        if int(np.prod(layout.shape)) != columns:
            raise FormatError(
                f"{path}: {columns} values a row do not fill the shape {layout.shape}, which "
                f"takes {int(np.prod(layout.shape))}"
            )
        table = table.reshape(len(classes), *layout.shape)
    return table, classes


def _rows(
    reader: Iterator[list[str]], path: Path, layout: CsvLayout
) -> Iterator[tuple[int, list[float], str]]:
    """Line number, values, and the label as text."""
    header = [name.strip() for name in next(reader, [])]
    if not header or len(header) > MOST_COLUMNS:
        raise FormatError(f"{path}: {len(header)} columns, expected a header line with their names")
    twice = {name for name in header if header.count(name) > 1} if len(header) < 1000 else set()
    if twice or "" in header or _is_number(header[0]):
        raise FormatError(
            f"{path}: the header has {sorted(twice) or 'no names or an empty one'}; expected one "
            "line with a name for each column"
        )
    missing = [name for name in layout.ignore if name not in header]
    if missing:
        raise FormatError(f"{path}: has no column {missing[0]!r}; it has {', '.join(header[:8])}")
    at = header.index(layout.label) if layout.label in header else None
    alike = [
        name
        for name in header
        if name.casefold() == layout.label.casefold() and name not in layout.ignore
    ]
    if at is None and (alike or layout.label != DEFAULT_LABEL):
        like = alike[0] if alike else "NAME"
        raise FormatError(
            f"{path}: has no column {layout.label!r}; it has {', '.join(header[:8])}: name the "
            f"label's column by --label {like}, or leave it out by --ignore {like}"
        )
    wanted = [i for i, name in enumerate(header) if i != at and name not in layout.ignore]
    if not wanted:
        raise FormatError(f"{path}: has no column of values beside {layout.label!r}")
    for number, cells in enumerate(reader, start=2):
        if not cells:
            continue  # an empty line, as at the end
        if len(cells) != len(header):
            raise FormatError(
                f"{path}: line {number} has {len(cells)} columns, the header has {len(header)}"
            )
        row = [_number(cells[i], path, number, header[i]) for i in wanted]
        yield number, row, "" if at is None else cells[at]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, path: Path, line: int, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise FormatError(
            f"{path}: line {line}, column {column} is {text!r}, expected a finite number"
        )
    return value


def _windows(
    path: Path, table: NDArray[np.float32], classes: NDArray[np.int64], layout: CsvLayout
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    step = layout.step or layout.window
    starts = range(0, len(table) - layout.window + 1, step)
    if not len(starts):
        raise FormatError(f"{path}: {len(table)} rows are less than one window of {layout.window}")
    inputs = np.stack([table[start : start + layout.window].T for start in starts])
    labels = [
        classes[start] if (classes[start : start + layout.window] == classes[start]).all() else -1
        for start in starts
    ]
    return np.ascontiguousarray(inputs), np.array(labels, np.int64)
