"""What to do with a damaged store: move it aside, and take over every sample that is whole.

    store.db.damaged-TIME   moved aside; its samples are to be taken over, at this opening or, when
                            that was cut off, at the next
    store.db.corrupt-TIME   that is done; the newest two are kept

Each sample carries the SHA-256 of its values, so what is taken over is what was ingested, and twice
is once. Models and messages are not: the server sends both again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import StorageError
from penstock.federated.client.database import FAILURES, DamagedDatabase, Database
from penstock.loaders.partial_file import keep_file

COLUMNS = ("hash", "chunk", "label", "shape", "data", "exemplar", "ingested_at")
Row = tuple[int, bytes, int | None, int | None, str, bytes, int, float]
FACTS = ("shape", "labels", "run", "chunk")
PAGE = 4096  # SQLite's default, which `Database` keeps
KINDS = ("damaged", "corrupt")
KEPT = 2  # damaged files
PART_BYTES = 4 << 20  # of samples in memory, and in one transaction
ONE_BY_ONE, MOST_ID = 2000, 1 << 62
TAKE = (  # two damaged stores may hold the same sample
    f"INSERT INTO samples ({', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (hash) DO UPDATE SET label = coalesce(label, excluded.label)"
)


@dataclass(frozen=True)
class Salvage:
    """What became of a damaged store: where it lies now, and samples that were taken over."""

    moved_to: Path
    reason: str
    samples: int

    def __str__(self) -> str:
        return (
            f"the store was damaged ({self.reason}): it lies at {self.moved_to}, and "
            f"{self.samples} samples were taken over into a new one"
        )


def sample_hash(shape: str, data: bytes) -> bytes:
    """The identity of a sample: SHA-256 of its shape (as JSON) and values, 32 bytes."""
    return hashlib.sha256(shape.encode() + b"\0" + data).digest()


def open_or_salvage(path: Path, disk: int = 0) -> tuple[Database, Salvage | None]:
    """The store's database; a damaged one is moved aside first.

    Raises:
        FormatError, StorageError: as `Database`; or a damaged one cannot be moved, or taken over
            for want of room: then it is tried again at the next opening.
    """
    reason = "its samples were not all taken over when that was found"
    try:
        database = Database(path, disk)
    except DamagedDatabase as damage:
        reason = str(damage).removeprefix(f"{path}: ").splitlines()[0]
        _move_aside(path)
        database = Database(path, disk)
    waiting = [
        found
        for found in sorted(path.parent.glob(f"{path.name}.damaged-*"))
        if not found.name.endswith(("-wal", "-shm"))
    ]
    if not waiting:
        return database, None
    try:
        database.bound(0)  # what was in the old store may be in the new one
        for damaged in waiting:
            _take_over(damaged, database)
        with database.reading() as db:
            samples = int(db.execute("SELECT count(*) FROM samples").fetchone()[0])
        database.bound(disk)
        for damaged in waiting:
            done = path.with_name(damaged.name.replace(".damaged-", ".corrupt-"))
            _rename(damaged, done)
        _forget_old(path, done)
        return database, Salvage(done, reason, samples)
    except BaseException:
        database.close()
        raise


def moved_aside(path: Path) -> tuple[Path, ...]:
    """What there is of a store's damaged predecessors, their logs too."""
    return tuple(
        sorted(found for kind in KINDS for found in path.parent.glob(f"{path.name}.{kind}-*"))
    )


def _move_aside(path: Path) -> None:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    number, end = 0, stamp
    while any(path.with_name(f"{path.name}.{kind}-{end}").exists() for kind in KINDS):
        number += 1
        end = f"{stamp}-{number}"
    _rename(path, path.with_name(f"{path.name}.damaged-{end}"))


def _rename(path: Path, target: Path) -> None:
    """A database and its log, which may hold commits and must not be played into another file."""
    try:
        for end in ("-wal", "-shm"):
            part = path.with_name(path.name + end)
            if part.exists():
                os.replace(part, target.with_name(target.name + end))
    except OSError as error:
        raise StorageError(f"{path}: is damaged and cannot be moved aside: {error}") from error
    keep_file(path, target)


def _forget_old(path: Path, newest: Path) -> None:
    """A failing disk damages store after store; copies of all would fill it."""
    others = sorted(
        found
        for found in path.parent.glob(f"{path.name}.corrupt-*")
        if found != newest and not found.name.endswith(("-wal", "-shm"))
    )
    for old in others[: -(KEPT - 1)]:
        for end in ("", "-wal", "-shm"):
            with suppress(OSError):
                old.with_name(old.name + end).unlink(missing_ok=True)


def _take_over(damaged: Path, database: Database) -> None:
    """Put its samples into the database; it may be begun anew after every step."""
    if not _copy(damaged, database):
        # Perhaps it is the first page, which says where the tables are. A new store's says the
        # same: the tables are made in the same order, so they begin at the same pages.
        folder = database.path.with_name(f"{database.path.name}.salvaging")
        shutil.rmtree(folder, ignore_errors=True)  # of one that was cut off
        try:
            folder.mkdir(mode=0o700)
            if _with_new_first_page(damaged, folder / "copy.db"):
                _copy(folder / "copy.db", database)
        except OSError as error:
            raise StorageError(
                f"{damaged}: no room for a copy ({error}), which its samples are read from: free "
                f"{damaged.stat().st_size} bytes"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _copy(path: Path, database: Database) -> int:
    """Put facts and whole samples into the database, a few at a time. Returns how many there
    were."""
    read = 0
    with closing(_source(path)) as old:
        facts, rows = _facts(old), filter(_is_whole, _rows(old))
        part = _part(rows)
        if part:
            facts["shape"] = part[0][4]  # which a checksum covers
        with database.writing() as new:
            for name, value in facts.items():
                new.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
        while part:
            with database.writing() as new:
                new.executemany(
                    TAKE, [_taken(row, facts) for row in part if row[4] == facts["shape"]]
                )
            read += len(part)
            part = _part(rows)
    return read


def _part(rows: Iterator[Row]) -> list[Row]:
    """The next few: memory is bounded, and so is the log of a transaction."""
    part: list[Row] = []
    left = PART_BYTES
    while left > 0 and (row := next(rows, None)) is not None:
        part.append(row)
        left -= len(row[5])
    return part


def _taken(row: Row, facts: Mapping[str, str]) -> tuple[object, ...]:
    """What `TAKE` takes. Without the facts a number of a chunk says nothing."""
    _, identity, chunk, label, *others = row
    label = label if label is None or label >= 0 else None  # no hash covers it
    return (identity, chunk if "chunk" in facts else None, label, *others)


def _source(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(path, isolation_level=None)
    except sqlite3.Error as error:
        raise StorageError(f"{path}: cannot be opened: {error}") from error


def _facts(old: sqlite3.Connection) -> dict[str, str]:
    try:
        found = dict(old.execute("SELECT name, value FROM facts").fetchall())
        for value in found.values():
            json.loads(value)
        return {name: found[name] for name in FACTS if name in found}
    except (sqlite3.Error, ValueError, TypeError):
        return {}


def _rows(old: sqlite3.Connection) -> Iterator[Row]:
    """Rows in their order, without those that cannot be read."""
    try:
        old.execute("SELECT id FROM samples LIMIT 0")
    except FAILURES:
        return  # there is no such table any more
    at, misses = 1, 0
    while True:
        row = _from(old, at)
        if row is None:
            return
        if row:
            at, misses = row[0] + 1, 0
            yield row
            continue
        # One by one first: right after a row that cannot be read lies the next that can. Then
        # further and further, and back to the first one that can be read.
        failed, misses = at, misses + 1
        at += 1 if misses <= ONE_BY_ONE else 1 << (misses - ONE_BY_ONE)
        if at > MOST_ID:
            return
        if at > failed + 1 and _from(old, at) != ():
            while at > failed + 1:
                middle = (failed + at) // 2
                if _from(old, middle) == ():
                    failed = middle
                else:
                    at = middle


def _from(old: sqlite3.Connection, at: int) -> Row | tuple[()] | None:
    """The row with this id or the next; None: there is none; (): it cannot be read."""
    columns = f"SELECT id, {', '.join(COLUMNS)} FROM samples WHERE"
    try:
        row: Row | None = old.execute(f"{columns} id >= ? ORDER BY id LIMIT 1", (at,)).fetchone()
        if row is None or row[0] == at:
            return row
        # In a damaged tree the next may be one from before, or have a number of others far behind
        # it, which would be passed over: then that number leads to another place.
        found = old.execute(f"{columns} id = ?", (row[0],)).fetchone()
    except FAILURES:
        return ()
    return row if found == row and row[0] > at else ()


def _is_whole(row: Row) -> bool:
    number, identity, chunk, label, shape, data, exemplar, at = row
    return (
        isinstance(shape, str)
        and isinstance(data, bytes)
        and sample_hash(shape, data) == identity
        and isinstance(chunk, int | None)
        and isinstance(label, int | None)
        and exemplar in (0, 1)
        and isinstance(at, float)
        and number > 0
    )


def _with_new_first_page(damaged: Path, copy: Path) -> bool:
    """Whether there was more than that page. An OSError says that there is no room."""
    pages = damaged.stat().st_size // PAGE
    if pages < 2:
        return False
    shutil.copyfile(damaged, copy)
    fresh = copy.with_name("fresh.db")
    Database(fresh).close()
    first = bytearray(fresh.read_bytes()[:PAGE])
    first[28:32] = pages.to_bytes(4, "big")  # size in pages (file format, section 1.3.8)
    first[32:40] = bytes(8)  # no list of free pages: it is only read
    with open(copy, "r+b") as file:
        file.write(first)
    return True
