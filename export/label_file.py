"""Labels of images: CSV `file,label` with a heading."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from penstock.errors import FormatError, StorageError, UsageError


def read_labels(path: Path) -> dict[str, int]:
    """Class number by name of the file, as the CSV has both.

    Raises:
        FormatError: a line is not NAME,NUMBER, one name has two labels, or it is no CSV.
        StorageError: the file cannot be read.
    """
    labels: dict[str, int] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            rows = [(number, row) for number, row in enumerate(csv.reader(handle), 1) if row]
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(
            f"{path}: expected a text of lines FILE,NUMBER; it is no CSV: {error}"
        ) from None
    if rows and len(rows[0][1]) == 2 and not _is_number(rows[0][1][1]):
        del rows[0]  # the heading
    for line, row in rows:
        label = _class_number(row[1]) if len(row) == 2 else None
        if label is None or not row[0].strip():
            raise FormatError(
                f"{path}: line {line} is '{','.join(row)}', expected FILE,NUMBER with the number "
                "of a class, 0 or more"
            )
        name = row[0].strip()
        if labels.setdefault(name, label) != label:
            raise FormatError(f"{path}: line {line}: '{name}' has labels {labels[name]}, {label}")
    if not labels:
        raise FormatError(f"{path}: no labels in it; expected lines FILE,NUMBER")
    return labels


def label_files(path: Path, folder: Path, files: Iterable[Path]) -> dict[Path, int]:
    """The labelled ones of `files`, in their order.

    A label names a file by its path under the folder or by its name, with or without suffix.

    Raises:
        UsageError: a label names no file, or more than one.
        FormatError, StorageError: as `read_labels`.
    """
    by_name: dict[str, list[Path]] = {}
    for file in files:
        under = file.relative_to(folder)
        names = {under.as_posix(), under.with_suffix("").as_posix(), file.name, file.stem}
        for name in names:
            by_name.setdefault(name, []).append(file)
    found: dict[Path, int] = {}
    labels = read_labels(path)
    missing = [name for name in labels if name not in by_name]
    if missing:
        shown = ", ".join(f"'{name}'" for name in missing[:3])
        raise UsageError(
            f"{path}: {len(missing)} of {len(labels)} labels name files that are not in {folder}: "
            f"{shown}{'...' if len(missing) > 3 else ''}"
        )
    for name, label in labels.items():
        if len(by_name[name]) > 1:
            first, second = sorted(by_name[name])[:2]
            raise UsageError(f"{path}: '{name}' is both {first} and {second}; give the path")
        if found.setdefault(by_name[name][0], label) != label:
            raise UsageError(f"{path}: {by_name[name][0]} has two labels under two names")
    return {file: found[file] for file in sorted(found)}


def _is_number(text: str) -> bool:
    """Also of what is no class, so that a first line of -1 is not taken for a heading."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _class_number(text: str) -> int | None:
    try:
        number = int(text)
    except ValueError:
        return None
    return number if number >= 0 else None
