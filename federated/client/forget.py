"""Delete windows from a device's store on its owner's word, and leave nothing of them on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import StorageError, UsageError
from penstock.federated.client.ingest import read_windows
from penstock.federated.client.ingest_csv import CsvLayout
from penstock.federated.client.labels import AnyLabels
from penstock.federated.client.salvage import moved_aside, sample_hash
from penstock.federated.client.store import Store
from penstock.federated.protocol import MOST_INTEGER
from penstock.federated.training.data import UNLABELLED


@dataclass(frozen=True)
class Which:
    """Which windows; where more than one is given, those that all of them name.

    Attributes:
        inputs: of the windows, [n, *shape]; None: whatever their content.
        label: -1: those without; None: whatever their label.
        chunk: of time; a window that was not used yet counts to the open one. None: whatever.
        everything: all windows; alone.
    """

    inputs: NDArray[np.float32] | None = None
    label: int | None = None
    chunk: int | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        named = any(given is not None for given in (self.inputs, self.label, self.chunk))
        if named == self.everything:
            raise UsageError(
                "say which windows are to go: files that hold them, a label, a chunk, or all"
            )


@dataclass(frozen=True)
class Forgotten:
    """What was deleted.

    Attributes:
        labelled, unlabelled: windows; exemplars: of these.
        emptied: none is left, so shape and label names are open again.
        log_remains: the log beside the database could not be emptied and may still hold it: another
            process used it meanwhile, or there was no room. The next call tries again.
        copies: files of a damaged store that were moved aside; what is in them was not touched.
    """

    labelled: int
    unlabelled: int
    exemplars: int
    emptied: bool
    log_remains: bool
    copies: tuple[Path, ...]


def forget(store: Store, which: Which) -> Forgotten:
    """Delete these windows: all of them, or none. Their bytes are overwritten in the file.

    Raises:
        StorageError: the store is damaged, or cannot be written.
    """
    database = store.database
    with database.writing() as db:
        where, values = _where(which, store.chunk)
        select = f"SELECT id, label IS NOT NULL, exemplar FROM samples WHERE {where}"
        rows = {
            row[0]: row[1:]
            for more in _hashes(which)
            for row in db.execute(select, (*values, *more))
        }
        db.executemany("DELETE FROM samples WHERE id = ?", [(number,) for number in rows])
        emptied = bool(rows) or which.everything  # the turn of a chunk may have emptied it before
        emptied = emptied and not db.execute("SELECT 1 FROM samples LIMIT 1").fetchone()
        if emptied:
            db.execute("DELETE FROM facts WHERE name IN ('shape', 'labels')")
    try:
        whole = database.shrink()
    except StorageError:
        whole = False  # they are deleted all the same
    labelled = sum(row[0] for row in rows.values())
    return Forgotten(
        labelled,
        len(rows) - labelled,
        sum(row[1] for row in rows.values()),
        emptied,
        not whole,
        moved_aside(store.path),
    )


def windows_of(
    store: Store, files: Sequence[Path], layout: CsvLayout | None = None
) -> NDArray[np.float32] | None:
    """The windows of .csv and .npz files, [n, *shape], whatever their labels; None without files.

    Raises:
        FormatError: a file is not what it should be: says where.
        UsageError: its windows have another shape than those in the store.
    """
    found = []
    for path in files:
        inputs, _ = read_windows(path, AnyLabels(), layout)
        if inputs.shape[1:] != store.shape:
            raise UsageError(
                f"{path}: its windows have shape {inputs.shape[1:]}, those in the store "
                f"{store.shape or 'none'}"
            )
        found.append(inputs)
    return np.concatenate(found) if found else None


def parse_label(text: str, names: tuple[str, ...]) -> int:
    """A label of the store, by name or number, also one that has no name; -1: none.

    Raises:
        UsageError: it is neither, or under -1.
    """
    if text in names:
        return names.index(text)
    try:
        number = int(text)
    except ValueError:
        number = UNLABELLED - 1
    if not UNLABELLED <= number <= MOST_INTEGER:
        known = f"one of {', '.join(names)}, or a number" if names else "a number"
        raise UsageError(f"the label is {text!r}, expected {known} from 0 on; -1 is none")
    return number


def _where(which: Which, chunk: int) -> tuple[str, list[int]]:
    parts, values = ["1"], list[int]()
    if which.label is not None:
        parts.append("coalesce(label, -1) = ?")
        values.append(which.label)
    if which.chunk is not None:
        parts.append("coalesce(chunk, ?) = ?")
        values += [chunk, which.chunk]
    if which.inputs is not None:
        parts.append("hash = ?")
    return " AND ".join(parts), values


def _hashes(which: Which) -> Iterable[tuple[bytes, ...]]:
    """What is put in for the hash, once for each window; once nothing where none is named."""
    if which.inputs is None:
        return [()]
    shape = json.dumps(which.inputs.shape[1:])
    little = np.ascontiguousarray(which.inputs, "<f4")
    return ((sample_hash(shape, window.tobytes()),) for window in little)
