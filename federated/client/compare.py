"""Windows that come in, held against those that are there: what is new, which label each gets."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from penstock.errors import UsageError
from penstock.federated.training.data import UNLABELLED


@dataclass(frozen=True)
class Compared:
    """What is to be written.

    Attributes:
        new: labels of the rows that are not there, by row.
        labels: label and id of the windows that are there and get another one.
        relabelled: so many of these had one.
        there: ids of all windows that are there.
    """

    new: dict[int, int | None]
    labels: list[tuple[int, int]]
    relabelled: int
    there: set[int]


def compare(
    db: sqlite3.Connection, hashes: list[bytes], labels: list[int], relabel: bool
) -> Compared:
    """Compare windows, by their hashes, with those in the database.

    Args:
        db: inside a transaction.
        hashes: [n], the same one more than once perhaps.
        labels: [n]; -1: none, which changes nothing.
        relabel: a window that has another label gets the new one.

    Raises:
        UsageError: a label contradicts another of the same window.
    """
    first: dict[bytes, int] = {}
    said: dict[bytes, int] = {}
    for row, (identity, label) in enumerate(zip(hashes, labels, strict=True)):
        first.setdefault(identity, row)
        if label != UNLABELLED and said.setdefault(identity, label) != label:
            raise UsageError(
                f"window {row} was ingested before with label {said[identity]}, now it has "
                f"{label}: both in this file; which is right?"
            )
    new: dict[int, int | None] = {}
    changed: list[tuple[int, int]] = []
    there: set[int] = set()
    relabelled = 0
    for identity, row in first.items():
        value = said.get(identity)
        found = db.execute("SELECT id, label FROM samples WHERE hash = ?", (identity,)).fetchone()
        if found is None:
            new[row] = value
            continue
        number, known = found
        there.add(number)
        if value is None or value == known:
            continue
        if known is not None and not relabel:
            raise UsageError(
                f"window {row} was ingested before with label {known}, now it has {value}; which "
                "is right? --relabel takes the new one"
            )
        changed.append((value, number))
        relabelled += known is not None
    return Compared(new, changed, relabelled, there)
