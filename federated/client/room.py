"""Room in a device's store: what the bound on its file leaves for whom, and whether there is any.

Samples leave a quarter of the bound to what a round needs: models, messages and answers. Without
that a store full of samples could take no message, and the device would take part no more.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Set

from penstock.errors import StorageError
from penstock.federated.client.database import Database

LOG = logging.getLogger(__name__)
RESERVED = 4  # one byte in so many is kept free of samples
SLACK_PAGES = 16  # indexes and pages that are not full
LEAST = 64 << 10  # for a message's head and what is noted with it


def make_room(
    database: Database, nbytes: int, *, samples: bool = False, keep: Set[int] = frozenset()
) -> int:
    """Delete old unlabelled windows until this much fits: first those of closed chunks.

    To be called inside `Database.writing`; when what is written there fails, nothing was deleted.

    Args:
        nbytes: that will be written.
        samples: they are samples, which leave a part of the bound to the rounds.
        keep: ids of windows that stay.

    Returns:
        Windows that were deleted.

    Raises:
        StorageError: samples do not fit even so.
    """
    missing = _missing(database, nbytes, samples)
    if missing <= 0:
        return 0
    db, evicted = database.connection, 0
    chunk = db.execute("SELECT CAST(value AS INTEGER) FROM facts WHERE name = 'chunk'").fetchone()
    rows = db.execute(
        "SELECT id, length(data) FROM samples WHERE label IS NULL AND NOT exemplar "
        "ORDER BY coalesce(chunk, 1 << 40) >= ?, id",
        (chunk[0] if chunk else 0,),
    ).fetchall()
    for number, size in rows:
        if missing <= 0:
            break
        if number not in keep:
            db.execute("DELETE FROM samples WHERE id = ?", (number,))
            missing, evicted = missing - size, evicted + 1
    if missing > 0 and samples:
        raise _full(database, missing)
    if evicted and not samples:
        LOG.warning("%d unlabelled windows went: a round needs their room", evicted)
    return evicted


def check_room(database: Database, nbytes: int = LEAST) -> None:
    """Refuse to begin what could not be kept; unlabelled windows make room where there is none.

    It only looks, unless the bound is reached or the last write has failed: then it tries.

    Raises:
        StorageError: there is no room for so many bytes.
    """
    if _missing(database, nbytes, samples=False) > 0:
        with database.writing():
            make_room(database, nbytes)
            missing = _missing(database, nbytes, samples=False)
        if missing > 0:
            raise _full(database, missing)
    try:
        found = os.statvfs(database.path)
    except OSError as error:
        raise StorageError(f"{database.path}: {error.strerror}; nothing was written") from error
    free = found.f_frsize * (found.f_bfree if os.geteuid() == 0 else found.f_bavail)
    wanted = 2 * nbytes + LEAST  # the log holds it too
    if found.f_blocks and free < wanted:
        raise StorageError(
            f"{database.path}: no room: {free} bytes of the disk are free, {wanted} are needed; "
            "nothing was written: free space"
        )
    if database.refused:  # a quota, or a disk that says nothing of what is free
        with database.writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO models "
                "VALUES ('room', '', 0, 0, '', 0, zeroblob(?), '', 0)",
                (nbytes,),
            )
        with database.writing() as db:
            db.execute("DELETE FROM models WHERE name = 'room'")


def _missing(database: Database, nbytes: int, samples: bool) -> int:
    """Bytes by which this would go over the bound, not positive where it fits."""
    with database.reading() as db:
        page = int(db.execute("PRAGMA page_size").fetchone()[0])
        bound = page * int(db.execute("PRAGMA max_page_count").fetchone()[0])
        missing = database.nbytes() + int(nbytes * 1.1) + SLACK_PAGES * page - bound
        if samples:
            rounds = _round_bytes(db)
            missing += max(bound // RESERVED - rounds, rounds // RESERVED)
    return missing


def _round_bytes(db: sqlite3.Connection) -> int:
    row = db.execute(
        "SELECT (SELECT coalesce(sum(length(arrays)), 0) FROM models) "
        "+ (SELECT coalesce(sum(length(arrays)), 0) FROM answers) "
        "+ (SELECT coalesce(sum(length(content)), 0) FROM objects)"
    ).fetchone()
    return int(row[0])


def _full(database: Database, missing: int) -> StorageError:
    return StorageError(
        f"{database.path}: no room: {missing} bytes more than `disk` allows, and labelled windows "
        "are not thrown away; nothing was written: raise `disk` in the configuration"
    )
