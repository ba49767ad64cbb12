"""The journal of Flower's messages: none is lost and none is answered twice, whatever ends us.

    announced  the server has handed the message out and will not do so again; its parts are not
               here yet
    held       all parts are here: from now on it survives without the server
    answered   the reply is here, and is sent until the server has it
    (gone)     sent, or given up; a line in `done` says which

Every step is one transaction, so a crash leaves the message in the state before or after.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from penstock.federated.client.database import Database
from penstock.federated.client.room import LEAST, check_room, make_room

State = Literal["announced", "held", "answered"]
Outcome = Literal["sent", "expired", "gone", "failed"]
DONE_KEPT = 200


@dataclass(frozen=True)
class Entry:
    """One open message.

    Attributes:
        id: Flower's; run_id: uint64; kind: "query", "train" or "evaluate".
        state: see the top; attempts: how often work on it was begun.
        expires_at: Unix time from which the server takes no answer.
        confirmed: the server knows that we hold all of it.
        head, tree: protobuf as it came; reply_head, reply_tree: of the answer.
        seconds: that the answer took.
    """

    id: str
    run_id: int
    kind: str
    state: State
    attempts: int
    expires_at: float
    confirmed: bool
    head: bytes
    tree: bytes
    reply_head: bytes | None
    reply_tree: bytes | None
    seconds: float


FIELDS = (
    "id, run_id, kind, state, attempts, expires_at, confirmed, head, tree, reply_head, reply_tree, "
    "seconds"
)


class Journal:
    """The open messages in a store's database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def check_room(self, nbytes: int = LEAST) -> None:
        """Refuse to begin what could not be kept.

        Raises:
            StorageError: there is no room for so many bytes.
        """
        check_room(self.database, nbytes)

    def announce(
        self, message_id: str, run_id: int, kind: str, expires_at: float, head: bytes, tree: bytes
    ) -> None:
        """A message was handed out to us."""
        with self.database.writing() as db:
            make_room(self.database, len(head) + len(tree))
            db.execute(
                "INSERT OR IGNORE INTO messages "
                "(id, state, run_id, kind, expires_at, head, tree, received_at) "
                "VALUES (?, 'announced', ?, ?, ?, ?, ?, ?)",
                (message_id, str(run_id), kind, expires_at, head, tree, time.time()),
            )

    def hold(self, message_id: str, parts: Mapping[str, bytes]) -> None:
        """All its parts are here."""
        with self.database.writing() as db:
            make_room(self.database, sum(map(len, parts.values())))
            self._put_parts(message_id, parts, reply=False)
            db.execute("UPDATE messages SET state = 'held' WHERE id = ?", (message_id,))

    def confirmed(self, message_id: str) -> None:
        """The server knows."""
        with self.database.writing() as db:
            db.execute("UPDATE messages SET confirmed = 1 WHERE id = ?", (message_id,))

    def begin(self, message_id: str) -> int:
        """Work on it begins. Returns how often it has, now included."""
        with self.database.writing() as db:
            db.execute("UPDATE messages SET attempts = attempts + 1 WHERE id = ?", (message_id,))
            row = db.execute("SELECT attempts FROM messages WHERE id = ?", (message_id,)).fetchone()
        return int(row[0]) if row else 0

    def interrupted(self, message_id: str) -> None:
        """Work on it was ended by us, not by a fault: that attempt does not count."""
        with self.database.writing() as db:
            db.execute(
                "UPDATE messages SET attempts = max(0, attempts - 1) WHERE id = ?", (message_id,)
            )

    def answer(
        self, message_id: str, head: bytes, tree: bytes, parts: Mapping[str, bytes], seconds: float
    ) -> None:
        """The reply is here; the parts of the question may go."""
        with self.database.writing() as db:
            db.execute("DELETE FROM objects WHERE message = ?", (message_id,))
            make_room(self.database, sum(map(len, parts.values())))
            self._put_parts(message_id, parts, reply=True)
            db.execute(
                "UPDATE messages SET state = 'answered', reply_head = ?, reply_tree = ?, "
                "seconds = ? WHERE id = ?",
                (head, tree, seconds, message_id),
            )

    def end(self, message_id: str, outcome: Outcome) -> None:
        """It is over."""
        with self.database.writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO done SELECT id, run_id, kind, ?, ? FROM messages "
                "WHERE id = ?",
                (outcome, time.time(), message_id),
            )
            db.execute("DELETE FROM messages WHERE id = ?", (message_id,))
            db.execute(  # by number, not by time: a clock may be set back
                "DELETE FROM done WHERE rowid NOT IN "
                "(SELECT rowid FROM done ORDER BY rowid DESC LIMIT ?)",
                (DONE_KEPT,),
            )

    def open_messages(self) -> list[Entry]:
        """Everything that is not over, oldest first."""
        with self.database.reading() as db:
            rows = db.execute(f"SELECT {FIELDS} FROM messages ORDER BY rowid").fetchall()
        return [_entry(row) for row in rows]

    def entry(self, message_id: str) -> Entry | None:
        """One open message."""
        with self.database.reading() as db:
            row = db.execute(
                f"SELECT {FIELDS} FROM messages WHERE id = ?", (message_id,)
            ).fetchone()
        return None if row is None else _entry(row)

    def parts(self, message_id: str, *, reply: bool) -> dict[str, bytes]:
        """The parts that are here and whole: an id is the SHA-256 of its content."""
        with self.database.reading() as db:
            rows = db.execute(
                "SELECT id, content FROM objects WHERE message = ? AND reply = ?",
                (message_id, int(reply)),
            ).fetchall()
        return {name: data for name, data in rows if hashlib.sha256(data).hexdigest() == name}

    def nbytes(self, message_id: str) -> int:
        """Of the parts of a question, or of its reply."""
        with self.database.reading() as db:
            row = db.execute(
                "SELECT coalesce(sum(length(content)), 0) FROM objects WHERE message = ?",
                (message_id,),
            ).fetchone()
        return int(row[0])

    def outcomes(self) -> dict[str, int]:
        """How many messages ended how, of the last 200."""
        with self.database.reading() as db:
            return dict(db.execute("SELECT outcome, count(*) FROM done GROUP BY 1").fetchall())

    def _put_parts(self, message_id: str, parts: Mapping[str, bytes], *, reply: bool) -> None:
        self.database.connection.executemany(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)",
            [(message_id, int(reply), name, data) for name, data in parts.items()],
        )


def _entry(row: tuple[object, ...]) -> Entry:
    values = list(row)
    values[1] = int(str(values[1]))
    values[6] = bool(values[6])
    return Entry(*values)  # type: ignore[arg-type]
