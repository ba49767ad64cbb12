"""Whether this device's work counts, and if not, why and since when. For the status.

A device hears of it in four ways, and what each says holds until that way says otherwise:

    conditions  what it answered the last query: its battery, its network, no windows
    task        why it could not do the last task
    left_out    why the server gave it no task; the next task ends that
    refused     why the server did not count its last update
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from penstock.federated.client.database import Database
from penstock.federated.protocol import MOST_REASON, Notice

MOST_JSON = 2000  # bytes of a reason: the node's lines to its supervisor are bounded
FACT = "standing"  # in the store: way to [reason, Unix time]
# The first one that there is is shown.
WORDS = {
    "task": "sits out",
    "refused": "refused",
    "left_out": "sits out",
    "conditions": "not now",
}


@dataclass(frozen=True)
class Standing:
    """What is to be said of a device.

    Attributes:
        word: "takes part", "not asked yet", "not now" (its conditions do not hold), "sits out" (its
            data does not fit, or it cannot train), "refused" (the server does not count its work).
        reason: in words; empty where it takes part.
        since: Unix time of the first time that this was so; 0 where it takes part.
    """

    word: str
    reason: str = ""
    since: float = 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """For the status, by name."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since)) if self.since else ""
        return {
            "standing": self.word,
            "standing_reason": self.reason,
            "standing_since": stamp,
        }


class Standings:
    """The four words in a store's database; written only where one changes."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def after_query(self, conditions: str, notice: Notice | None) -> None:
        """A query came.

        Args:
            conditions: why the device takes no part now; empty: it does.
            notice: of the server; None: it has nothing to say.

        Raises:
            StorageError: it cannot be kept.
        """
        said = notice or Notice()
        self._change(conditions=conditions, left_out=said.left_out, refused=said.refused)

    def after_task(self, reason: str = "") -> None:
        """A task came, and could not be done for this reason; empty: it was done.

        Raises:
            StorageError: it cannot be kept.
        """
        self._change(task=reason, left_out="")

    def now(self) -> Standing:
        """What is to be said.

        Raises:
            StorageError: the store cannot be read.
        """
        held = self._held()
        if held is None:
            return Standing("not asked yet")
        for way, word in WORDS.items():
            reason, since = held.get(way, ("", 0.0))
            if reason:
                return Standing(word, reason, since)
        return Standing("takes part")

    def _held(self) -> dict[str, tuple[str, float]] | None:
        with self.database.reading() as db:
            row = db.execute("SELECT value FROM facts WHERE name = ?", (FACT,)).fetchone()
        if row is None:
            return None
        found = json.loads(row[0]).items()
        return {way: (str(reason), float(since)) for way, (reason, since) in found}

    def _change(self, **reasons: str) -> None:
        before = self._held()
        held = dict(before or {})
        for way, text in reasons.items():
            reason = printable(text)
            if not reason:
                held.pop(way, None)
            elif reason != held.get(way, ("", 0.0))[0]:
                held[way] = (reason, time.time())
        if held != before:
            with self.database.writing() as db:
                db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (FACT, json.dumps(held)))


def printable(text: str) -> str:
    """A text of the network for a terminal: one line, no control characters, not too long."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * MOST_REASON])
    line = " ".join(kept.split())[:MOST_REASON]
    while len(json.dumps(line)) > MOST_JSON:
        line = line[:-1]
    return line
