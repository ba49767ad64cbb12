"""One SQLite file that survives crashes: how it is opened, checked, written and measured.

Write-ahead log, a full fsync at each commit, foreign keys, an integrity check at each opening; what
is deleted is overwritten.
What SQLite says of a full or damaged disk becomes a StorageError that says what to do.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from penstock.errors import FormatError, StorageError, UsageError
from penstock.federated.client.schema import TABLES, VERSION

LEAST_DISK = 1 << 20  # below this not even an empty store has room
MOST_PAGES = (1 << 30) - 1  # of any version of SQLite: 4 TiB
PATIENCE_S = 20.0  # for another process (an ingest) that writes
DAMAGED = (
    (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    if hasattr(sqlite3, "SQLITE_CORRUPT")
    else (11, 26)
)  # Python 3.10 does not name them

# A damaged schema or text is not always UTF-8, and Python may say that instead of what SQLite says.
FAILURES = (sqlite3.Error, UnicodeDecodeError)


class DamagedDatabase(Exception):
    """The file is not a whole SQLite database; `salvage` can read what is left."""


class Database:
    """An open store file.

    Args:
        path: of the file; it is made when it is not there.
        disk: most bytes that the file may have; 0: no bound.

    Attributes:
        damaged: a read or a write has met damage since the file was opened.
        refused: the last write failed, for want of room perhaps.

    Raises:
        DamagedDatabase: the integrity check failed.
        FormatError: made by a newer Penstock.
        StorageError: it cannot be opened or made.
    """

    def __init__(self, path: Path, disk: int = 0) -> None:
        if disk and disk < LEAST_DISK:
            raise UsageError(f"disk is {disk} bytes, expected at least {LEAST_DISK}")
        self.path = path
        self.damaged = self.refused = False
        try:
            self.connection = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)
        except sqlite3.Error as error:
            raise StorageError(
                f"{path}: cannot be opened: {error}; is the folder there and yours to write?"
            ) from error
        try:
            self._prepare(disk)
        except FAILURES as error:
            self.connection.close()
            if _is_damage(error):
                raise DamagedDatabase(f"{path}: {error}") from error
            raise _plain(path, error) from error
        except BaseException:
            self.connection.close()
            raise
        self._file = path.stat().st_ino

    def _prepare(self, disk: int) -> None:
        execute = self.connection.execute
        version = execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise FormatError(
                f"{self.path}: made by a newer Penstock (schema {version}, this one knows "
                f"{VERSION}); install that version, or begin with another folder"
            )
        if version:
            found = execute("PRAGMA quick_check(1)").fetchone()[0]
            if found == "ok":
                found = self._unlike_ours()
            if found:
                raise DamagedDatabase(f"{self.path}: {found}")
        else:
            execute("PRAGMA auto_vacuum = INCREMENTAL")  # before there is a table
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA foreign_keys = ON")
        execute("PRAGMA journal_size_limit = 0")  # a checkpoint cuts the log
        # Always: a window that moves to another page would leave a copy, which no later deletion
        # finds. FAST leaves some too, and OFF is the default of SQLite, not of Debian's.
        execute("PRAGMA secure_delete = ON")
        if not version:
            with self.writing():  # a second process may have been faster
                if not execute("PRAGMA user_version").fetchone()[0]:
                    _make_tables(self.connection)
                    execute(f"PRAGMA user_version = {VERSION}")
        self.bound(disk)

    def _unlike_ours(self) -> str:
        """Damage that is none to SQLite: what is wrong, or nothing."""
        if self._only_read():
            return "its header says that only a newer SQLite may write it"
        if _columns(self.connection) != _columns(_new_tables()):
            return "its tables have other columns"
        for name, value in self.connection.execute("SELECT name, CAST(value AS BLOB) FROM facts"):
            try:
                json.loads(value)
            except ValueError:
                return f"the fact {name!r} is not JSON"
        return ""

    def _only_read(self) -> bool:
        """Whether the header forbids to write (file format, section 1.3.3), and nothing else. The
        file is not opened to see: closing it would end the locks of every connection in the
        process."""
        execute = self.connection.execute
        execute("PRAGMA busy_timeout = 0")
        try:
            execute("BEGIN IMMEDIATE")  # which alone does not fail
            execute(f"PRAGMA user_version = {VERSION}")
            return False
        except sqlite3.OperationalError as error:  # or another process writes
            mine = all(os.access(place, os.W_OK) for place in (self.path, self.path.parent))
            return mine and "readonly" in str(error)
        finally:
            if self.connection.in_transaction:
                execute("ROLLBACK")
            execute(f"PRAGMA busy_timeout = {int(1000 * PATIENCE_S)}")

    def bound(self, disk: int) -> None:
        """Set the most bytes that the file may have; 0: no bound."""
        size = self.connection.execute("PRAGMA page_size").fetchone()[0]
        pages = disk // size if disk else MOST_PAGES
        self.connection.execute(f"PRAGMA max_page_count = {pages}")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it, or nothing.

        Raises:
            StorageError: the disk is full, a write failed, or the file is damaged.
        """
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection
            self.connection.execute("COMMIT")
            self.refused = False
        except BaseException as error:
            if self.connection.in_transaction:
                try:
                    self.connection.execute("ROLLBACK")
                except sqlite3.Error:
                    pass  # a full disk may have rolled back by itself
            if isinstance(error, FAILURES):
                self.refused = True
                self.damaged = self.damaged or _is_damage(error)
                raise _plain(self.path, error) from error
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For queries; sees one state of the file only within each statement.

        Raises:
            StorageError: a read failed, or the file is damaged.
        """
        try:
            yield self.connection
        except FAILURES as error:
            self.damaged = self.damaged or _is_damage(error)
            raise _plain(self.path, error) from error

    def must_reopen(self) -> bool:
        """Whether damage was met, or another process has met it and moved the file aside."""
        try:
            return self.damaged or self.path.stat().st_ino != self._file
        except OSError:
            return True

    def nbytes(self) -> int:
        """Bytes of the pages in use."""
        with self.reading() as db:
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            free = db.execute("PRAGMA freelist_count").fetchone()[0]
            return int((pages - free) * db.execute("PRAGMA page_size").fetchone()[0])

    def shrink(self) -> bool:
        """Give the pages of what was deleted back to the file system. Returns whether the log could
        be emptied too; while another process reads, it cannot."""
        with self.reading() as db:
            db.execute("PRAGMA incremental_vacuum").fetchall()
            return not db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]

    def close(self) -> None:
        """Close the file; the log beside it goes."""
        self.connection.close()


def _make_tables(connection: sqlite3.Connection) -> None:
    for statement in TABLES.split(";\n"):  # executescript would end the transaction
        if statement.strip():
            connection.execute(statement)


@cache
def _new_tables() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    _make_tables(connection)
    return connection


def _columns(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    """Of all tables and indices: names, types, NOT NULL, places in the primary key."""
    return connection.execute(
        'SELECT m.type, m.name, m.tbl_name, c.name, c.type, c."notnull", c.pk '
        "FROM sqlite_master m LEFT JOIN pragma_table_info(m.name) c "
        "WHERE m.name NOT LIKE 'sqlite_%' ORDER BY m.name, c.cid"
    ).fetchall()


def _is_damage(error: sqlite3.Error | UnicodeDecodeError) -> bool:
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and (code & 0xFF) in DAMAGED:
        return True
    said = ("malformed", "not a database", "unsupported file format", "Could not decode to UTF-8")
    return any(words in str(error) for words in said)


def _plain(path: Path, error: sqlite3.Error | UnicodeDecodeError) -> StorageError:
    if _is_damage(error):
        return StorageError(
            f"{path}: the database is damaged ({error}); start again: it is then moved aside and "
            "what can be read is taken over"
        )
    if "full" in str(error) or "I/O error" in str(error):
        return StorageError(
            f"{path}: no room ({error}); nothing was written: free space, or raise `disk` in the "
            "configuration"
        )
    return StorageError(f"{path}: {error}; nothing was written")
