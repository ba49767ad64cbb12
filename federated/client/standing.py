"""Whether this device's work counts, and if not, why and since when. For the status.

A device hears of it in four ways, and what each says holds until that way says otherwise:

    conditions  what it answered the last query: its battery, its network, no windows
    task        why it could not do the last task
    left_out    why the server gave it no task; the next task ends that
    refused     why the server did not count its last update

A query without a notice says nothing of the last two: a server that was just started, or an older
one, sends none.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.federated.client.database import Database
from penstock.federated.printable import printable
from penstock.federated.protocol import Notice

MOST_JSON = 2000  # bytes of a reason: the node's lines to its supervisor are bounded
FACT = "standing"  # in the store: way to [reason, Unix time]
NUMBER = re.compile(r"\d[\d.,]*")  # of a reason: "load 2.3"
NUMBERS_S = 60.0  # from one write to the next where only numbers have changed
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
        since: Unix time from which there was a reason of this way, be it another one at first; 0
            where it takes part.
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
    """The four words in a store's database; written only where one changes, for each write waits
    for the disk."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._written = -math.inf  # monotonic time

    def after_query(self, conditions: str, notice: Notice | None) -> None:
        """A query came.

        Args:
            conditions: why the device takes no part now; empty: it does.
            notice: of the server; None: none came, so what it said last holds.

        Raises:
            StorageError: it cannot be kept.
        """
        if notice is None:
            self._change(conditions=conditions)
        else:
            self._change(conditions=conditions, left_out=notice.left_out, refused=notice.refused)

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
        before, now = self._held(), time.time()
        held = dict(before or {})
        for way, text in reasons.items():
            reason = shown(text)
            if reason:
                held[way] = (reason, held.get(way, ("", now))[1])
            else:
                held.pop(way, None)
        lately = time.monotonic() - self._written < NUMBERS_S
        if held == before or (lately and before is not None and _alike(held, before)):
            return
        with self.database.writing() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (FACT, json.dumps(held)))
        self._written = time.monotonic()


def shown(text: str) -> str:
    """A reason as it is kept: printable, and not too long as JSON either."""
    line = printable(text)
    while len(json.dumps(line)) > MOST_JSON:
        line = line[:-1]
    return line


def _alike(one: Mapping[str, tuple[str, float]], two: Mapping[str, tuple[str, float]]) -> bool:
    """Whether the same ways say the same but for numbers."""
    words, others = (
        {way: NUMBER.sub("#", reason) for way, (reason, _) in held.items()} for held in (one, two)
    )
    return words == others
