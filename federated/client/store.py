"""What a device keeps on disk: its windows; beside them the models and answers of `rounds`.

    store = Store.open(folder / "store.db", disk=1 << 30)
    store.add(windows, labels)
    store.begin_chunk(run, 3)            # older windows go
    data = store.training_data(most_bytes)

A window belongs to the time chunk in which it is first used, unless it was ingested for a certain
one. When a new chunk begins, the windows of the older ones are deleted: FedMobile-style learning
keeps what was learnt, not the raw data.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import StorageError, UsageError
from penstock.federated.client.compare import compare
from penstock.federated.client.database import Database
from penstock.federated.client.room import make_room
from penstock.federated.client.rounds import TEACHER, Rounds
from penstock.federated.client.salvage import Salvage, open_or_salvage, sample_hash
from penstock.federated.training.data import UNLABELLED, TrainingData

MOST_SHAPE, MOST_VALUES = 4, 1 << 24  # axes and values of one window


@dataclass(frozen=True)
class Added:
    """What an ingest changed."""

    new: int
    labelled: int  # windows that were there and got their label now
    known: int  # windows that were there as they are
    evicted: int  # old unlabelled windows that made room
    relabelled: int = 0  # windows that were there with another label


@dataclass(frozen=True)
class Counts:
    """What is in the store."""

    labelled: int
    unlabelled: int
    waiting: int  # for a later chunk
    exemplars: int
    chunk: int
    nbytes: int


class Store:
    """The device's store; one process writes at a time, several may have it open.

    Attributes:
        path: of the database.
        salvage: what became of a damaged store at opening; None: it was whole.
        rounds: the models it got, and what it answered.
    """

    def __init__(self, database: Database, salvage: Salvage | None = None) -> None:
        self.database = database
        self.path = database.path
        self.salvage = salvage
        self.rounds = Rounds(database)

    @classmethod
    def open(cls, path: Path, disk: int = 0) -> Store:
        """Open or make the store; a damaged one is moved aside and its samples taken over.

        Args:
            path: of the database file.
            disk: most bytes it may have; 0: no bound.

        Raises:
            FormatError: made by a newer Penstock.
            StorageError: it cannot be opened, or there is no room.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise StorageError(f"{path.parent}: cannot be made or written: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two processes must not both move a damaged file
            return cls(*open_or_salvage(path, disk))
        finally:
            os.close(lock)

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    # ------------------------------------------------------------ facts

    def fact(self, name: str) -> Any:
        """A fact about the data or the run; None where it is not known."""
        with self.database.reading() as db:
            row = db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_fact(self, name: str, value: Any) -> None:
        """Write a fact."""
        with self.database.writing() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one window; empty before any was ingested."""
        return tuple(self.fact("shape") or ())

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels; empty where they were never given."""
        return tuple(self.fact("labels") or ())

    @property
    def chunk(self) -> int:
        """Of time, that is open."""
        return int(self.fact("chunk") or 0)

    # ------------------------------------------------------------ samples

    def add(
        self,
        inputs: NDArray[np.float32],
        labels: NDArray[np.int64],
        *,
        label_names: tuple[str, ...] = (),
        chunk: int | None = None,
        relabel: bool = False,
    ) -> Added:
        """Add windows: all of them, or none.

        A window that is there already is not added again; when it had no label and has one now, it
        gets it.

        Args:
            inputs: [n, *shape].
            labels: [n]; -1: none.
            label_names: of the labels 0, 1, ...; the same in every ingest, or none.
            chunk: the time chunk they are for; None: the one open when they are first used.
            relabel: a window that is there with another label gets the new one; -1 leaves it.

        Raises:
            UsageError: they have another shape or other label names than what is there, a label is
                out of range, or contradicts the one that a window has, or another one here.
            StorageError: the disk or the bound on it is full.
        """
        data = TrainingData(inputs, labels)  # checks types, lengths, finite values
        shape = tuple(int(size) for size in inputs.shape[1:])
        if len(shape) > MOST_SHAPE or not 0 < int(np.prod(shape)) <= MOST_VALUES:
            raise UsageError(f"a window has shape {shape}, expected 1 to {MOST_VALUES} values")
        if chunk is not None and chunk < self.chunk:
            raise UsageError(f"chunk is {chunk}, but chunk {self.chunk} has begun; older is over")
        text, now = json.dumps(shape), time.time()
        # Before the transaction: meanwhile a round may write.
        hashes = [sample_hash(text, _blob(window)) for window in inputs]
        with self.database.writing() as db:
            self._check_same(shape, label_names, data)
            found = compare(db, hashes, labels.tolist(), relabel)
            new = found.new
            db.executemany("UPDATE samples SET label = ? WHERE id = ?", found.labels)
            nbytes = len(new) * (inputs.nbytes // len(data) + 200) if new else 0
            evicted = make_room(self.database, nbytes, samples=True, keep=found.there) if new else 0
            db.executemany(
                "INSERT INTO samples (hash, chunk, label, shape, data, ingested_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (hashes[row], chunk, label, text, _blob(inputs[row]), now)
                    for row, label in new.items()
                ),
            )
        labelled = len(found.labels) - found.relabelled
        known = len(data) - len(new) - len(found.labels)
        return Added(len(new), labelled, known, evicted, found.relabelled)

    def _check_same(
        self, shape: tuple[int, ...], names: tuple[str, ...], data: TrainingData
    ) -> None:
        db = self.database.connection
        if self.shape and self.shape != shape:
            raise UsageError(
                f"the windows have shape {shape}, those in {self.path} have {self.shape}; one "
                "store holds one kind of data: if what is there is wrong, `penstock federated "
                "forget --all` deletes it"
            )
        if names and self.labels and self.labels != names:
            raise UsageError(
                f"label names are {', '.join(names)}; {self.path} has {', '.join(self.labels)}"
            )
        known = names or self.labels
        if known and len(data) and data.labels.max() >= len(known):
            raise UsageError(
                f"a label is {data.labels.max()}, but there are {len(known)} label names "
                f"(0 to {len(known) - 1})"
            )
        for name, value in (("shape", shape), ("labels", names)):
            if value:
                db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def counts(self) -> Counts:
        """How much is there."""
        with self.database.reading() as db:
            chunk = self.chunk
            rows = db.execute(
                "SELECT label IS NOT NULL, coalesce(chunk, ?) > ?, exemplar, count(*) "
                "FROM samples GROUP BY 1, 2, 3",
                (chunk, chunk),
            ).fetchall()

        def total(**wanted: int) -> int:
            names = ("labelled", "waiting", "exemplar")
            return sum(
                row[3]
                for row in rows
                if all(row[names.index(name)] == value for name, value in wanted.items())
            )

        return Counts(
            labelled=total(labelled=1, waiting=0, exemplar=0),
            unlabelled=total(labelled=0, waiting=0, exemplar=0),
            waiting=total(waiting=1),
            exemplars=total(exemplar=1),
            chunk=chunk,
            nbytes=self.database.nbytes(),
        )

    def begin_chunk(self, run: str, chunk: int) -> int:
        """Open this chunk of this run, where it is not open; the windows of older ones go.

        A window without a chunk is now of this one. A new run begins with what is there.

        Returns:
            Windows that were deleted.
        """
        with self.database.writing() as db:
            before = self.chunk
            deleted = 0
            if self.fact("run") != run:
                db.execute("UPDATE samples SET chunk = NULL WHERE chunk <= ?", (before,))
                db.execute("DELETE FROM models WHERE name = ?", (TEACHER,))
                self._put("run", run)
                self._put("chunk", chunk)
                before = -1
            if chunk > before:
                if before >= 0:
                    deleted = db.execute(
                        "DELETE FROM samples WHERE chunk < ? AND NOT exemplar", (chunk,)
                    ).rowcount
                self._put("chunk", chunk)
            db.execute("UPDATE samples SET chunk = ? WHERE chunk IS NULL", (self.chunk,))
        if deleted:
            self.database.shrink()
        return deleted

    def most_label(self, run: str, chunk: int) -> int:
        """The highest of the windows that would be there in this chunk of this run; -1: none."""
        goes_on = self.fact("run") == run and chunk > self.chunk
        with self.database.reading() as db:
            row = db.execute(
                "SELECT max(label) FROM samples "
                "WHERE exemplar OR coalesce(chunk, ?) BETWEEN ? AND ?",
                (chunk, chunk if goes_on else 0, max(chunk, self.chunk)),
            ).fetchone()
        return UNLABELLED if row[0] is None else int(row[0])

    def _put(self, name: str, value: Any) -> None:
        self.database.connection.execute(
            "INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value))
        )

    def training_data(self, most_bytes: int = 0, *, exemplars: bool = False) -> TrainingData:
        """The open chunk's windows, or the exemplars of older ones.

        Args:
            most_bytes: of the windows; when there are more, the labelled ones come first, then the
                newest. 0: all.

        Raises:
            StorageError: the store is damaged.
        """
        with self.database.reading() as db:
            rows = db.execute(
                "SELECT id FROM samples WHERE coalesce(chunk, 0) <= ? AND exemplar = ? "
                "ORDER BY label IS NULL, id DESC LIMIT ?",
                (self.chunk, int(exemplars), self._most_windows(most_bytes)),
            ).fetchall()
        return self._windows(row[0] for row in rows)[1]

    def labelled_windows(self, most_bytes: int = 0) -> tuple[list[int], TrainingData]:
        """Numbers and data of the labelled windows of the open chunk, and of the exemplars.

        Args:
            most_bytes: of the windows; when there are more, the exemplars come first, then the
                newest. 0: all.

        Raises:
            StorageError: the store is damaged.
        """
        with self.database.reading() as db:
            rows = db.execute(
                "SELECT id FROM samples WHERE label IS NOT NULL AND chunk <= ? "
                "ORDER BY exemplar DESC, id DESC LIMIT ?",
                (self.chunk, self._most_windows(most_bytes)),
            ).fetchall()
        return self._windows(row[0] for row in rows)

    def _most_windows(self, most_bytes: int) -> int:
        """So many fit; -1: there is no bound."""
        return most_bytes // (4 * int(np.prod(self.shape)) or 1) if most_bytes else -1

    def _windows(self, numbers: Iterable[int]) -> tuple[list[int], TrainingData]:
        """These windows in their order, without those that are gone or damaged."""
        shape, wanted = self.shape, sorted(numbers)
        inputs = np.empty((len(wanted), *(shape or (0,))), np.float32)
        labels = np.full(len(wanted), UNLABELLED, np.int64)
        text, kept = json.dumps(shape), list[int]()
        with self.database.reading() as db:
            for number, row in _by_id(db, wanted):
                damaged = row[0] is not None and row[0] < 0  # which no hash covers
                if damaged or row[1] != text.encode() or sample_hash(text, row[2]) != row[3]:
                    continue  # a damaged window is left out, not learnt from
                inputs[len(kept)] = np.frombuffer(row[2], "<f4").reshape(shape)
                labels[len(kept)] = UNLABELLED if row[0] is None else row[0]
                kept.append(number)
        return kept, TrainingData(inputs[: len(kept)], labels[: len(kept)])

    def set_exemplars(self, numbers: list[int]) -> None:
        """These windows outlive their chunk; no others do."""
        with self.database.writing() as db:
            db.execute("UPDATE samples SET exemplar = 0 WHERE exemplar")
            db.executemany(
                "UPDATE samples SET exemplar = 1 WHERE id = ?", [(number,) for number in numbers]
            )


def _blob(window: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(window, "<f4").tobytes()


def _by_id(
    db: Any, numbers: Iterable[int]
) -> Iterator[tuple[int, tuple[int | None, bytes, bytes, bytes]]]:
    for number in numbers:
        row = db.execute(
            "SELECT label, CAST(shape AS BLOB), data, hash FROM samples WHERE id = ?",
            (number,),
        ).fetchone()
        if row is not None:  # evicted meanwhile by an ingest in another process
            yield number, row
