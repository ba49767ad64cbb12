"""What to do with a damaged store: move it aside, and take over every sample that is whole.

Each sample carries the SHA-256 of its values, so what is taken over is what was ingested. Models
and messages are not: the server sends both again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import StorageError
from penstock.federated.client.database import DamagedDatabase, Database

COLUMNS = ("id", "hash", "chunk", "label", "shape", "data", "exemplar", "ingested_at")
Row = tuple[int, bytes, int | None, int | None, str, bytes, int, float]
FACTS = ("shape", "labels", "run", "chunk")
PAGE = 4096  # SQLite's default, which `Database` keeps


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
        FormatError, StorageError: as `Database`.
    """
    try:
        return Database(path, disk), None
    except DamagedDatabase as damage:
        reason = str(damage).removeprefix(f"{path}: ").splitlines()[0]
    moved = _move_aside(path)
    database = Database(path, disk)
    try:
        return database, Salvage(moved, reason, _take_over(moved, database))
    except BaseException:
        database.close()
        raise


def _move_aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target, number = path.with_name(f"{path.name}.corrupt-{stamp}"), 1
    while target.exists():
        target, number = path.with_name(f"{path.name}.corrupt-{stamp}-{number}"), number + 1
    try:
        # The log goes too: it may hold commits, and must not be played into the new file.
        for end in ("-wal", "-shm", ""):
            part = path.with_name(path.name + end)
            if part.exists():
                os.replace(part, target.with_name(target.name + end))
    except OSError as error:
        raise StorageError(
            f"{path}: the database is damaged and cannot be moved aside: {error}"
        ) from error
    return target


def _take_over(damaged: Path, database: Database) -> int:
    facts, rows = _read(damaged)
    if not rows:
        # Perhaps it is the first page, which says where the tables are. A new store's says the
        # same: the tables are made in the same order, so they begin at the same pages.
        with tempfile.TemporaryDirectory(dir=damaged.parent) as folder:
            copy = Path(folder) / "copy.db"
            if _with_new_first_page(damaged, copy):
                facts, rows = _read(copy)
    with database.writing() as new:
        for name, value in facts.items():
            new.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
        for row in rows:
            if "chunk" not in facts:  # then a number of a chunk says nothing
                row = (*row[:2], None, *row[3:])
            marks = ", ".join("?" for _ in row)
            new.execute(f"INSERT INTO samples ({', '.join(COLUMNS)}) VALUES ({marks})", row)
    return len(rows)


def _read(path: Path) -> tuple[dict[str, str], list[Row]]:
    """Facts as JSON, and the samples that are whole, each once."""
    rows: dict[bytes, Row] = {}
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as old:
            facts = _facts(old)
            for row in _rows(old):
                if _is_whole(row):
                    rows.setdefault(row[1], row)
    except sqlite3.Error:
        return {}, list(rows.values())
    found = list(rows.values())
    if found:
        facts.setdefault("shape", found[0][4])
        found = [row for row in found if row[4] == facts["shape"]]
    return facts, found


def _facts(old: sqlite3.Connection) -> dict[str, str]:
    try:
        found = dict(old.execute("SELECT name, value FROM facts").fetchall())
        for value in found.values():
            json.loads(value)
        return {name: found[name] for name in FACTS if name in found}
    except (sqlite3.Error, ValueError, TypeError):
        return {}


def _rows(old: sqlite3.Connection) -> Iterator[Row]:
    """Rows in their order; after one that cannot be read, the next that can."""
    at, step, misses = 0, 1, 0
    while misses < 40:  # the last steps are of a million millions
        try:
            row = old.execute(
                f"SELECT {', '.join(COLUMNS)} FROM samples WHERE id > ? ORDER BY id LIMIT 1", (at,)
            ).fetchone()
        except sqlite3.Error:
            at, step, misses = at + step, step * 2, misses + 1
            continue
        if row is None or not isinstance(row[0], int) or row[0] <= at:
            return  # in a damaged tree the next may be one from before
        yield row
        at, step, misses = row[0], 1, 0


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
    try:
        pages = damaged.stat().st_size // PAGE
        shutil.copyfile(damaged, copy)
        fresh = copy.with_name("fresh.db")
        Database(fresh).close()
        first = bytearray(fresh.read_bytes()[:PAGE])
        first[28:32] = pages.to_bytes(4, "big")  # size in pages (file format, section 1.3.8)
        first[32:40] = bytes(8)  # no list of free pages: it is only read
        with open(copy, "r+b") as file:
            file.write(first)
        return pages > 1
    except OSError:
        return False  # no room for a copy: the damaged file itself stays
