"""What a run tells while it goes on, for whoever watches over it from another process.

    append_note(folder, text)        the run: who is waited for, what was damaged
    Progress(folder, ...).look()     the watcher: these notes, and a line for each round's record

The run is a process of Flower's, whose output goes nowhere. So its notes are lines of a small file
beside the journal; a watcher that starts empties it, and so does the run once it is too long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from penstock.errors import FormatError
from penstock.federated.printable import printable
from penstock.federated.report.records import JOURNAL, RoundRecord

NOTES = "notes.txt"
MOST_NOTE = 4000  # letters
MOST_NOTES = 1 << 20  # bytes; the watcher reads them long before there are so many


def append_note(folder: Path, text: str) -> None:
    """Add one line. Where it cannot be written nobody is told: a note ends no run."""
    line = printable(text, MOST_NOTE)  # some quote a device
    with suppress(OSError), open(folder / NOTES, "a", encoding="utf-8") as file:
        if file.tell() > MOST_NOTES:
            file.truncate(0)
        file.write(f"{line}\n")


class Progress:
    """Tells what is new in a run's folder since the last look.

    Args:
        rounds: of the run, in all.
        note: told one line each.
    """

    def __init__(
        self,
        folder: Path,
        rounds: int,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rounds, self.note, self.clock = rounds, note, clock
        with suppress(OSError):
            (folder / NOTES).unlink(missing_ok=True)
        self._notes, self._journal = _NewLines(folder / NOTES), _NewLines(folder / JOURNAL)
        self._since = clock()  # the round before was told
        self._last: RoundRecord | None = None

    def look(self) -> None:
        """Tell all that came."""
        for line in self._notes.look():
            self.note(line)
        for line in self._journal.look():
            with suppress(FormatError):  # the report names what is wrong with it
                self._tell(RoundRecord.from_json(line, JOURNAL))

    def _tell(self, record: RoundRecord) -> None:
        last, self._last = self._last, record
        local = _measured(record.accuracy, record.macro_f1)
        if (
            last is not None
            and last.round_number == record.round_number
            and last.server_seconds == record.server_seconds
        ):  # the same round, written again with what the devices measured
            if local:
                self.note(f"round {record.round_number}, on the devices' own data: {local}")
            return
        now = self.clock()
        facts = [
            f"{len(record.devices)} of {len(record.bytes_down)} devices counted",
            _measured(record.global_accuracy, record.global_macro_f1),
            f"{now - self._since:.1f} s",
        ]
        self._since = now
        told = ", ".join(fact for fact in facts if fact)
        self.note(f"round {record.round_number} of {self.rounds}: {told}")


def _measured(accuracy: float, macro_f1: float) -> str:
    named = (("accuracy", accuracy), ("macro-F1", macro_f1))
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in named if value >= 0)


class _NewLines:
    """The whole lines that a file gets from now on; it may come later, and be emptied."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, 0
        self.look()

    def look(self) -> list[str]:
        """Those since the last look."""
        try:
            with open(self.path, "rb") as file:
                if file.seek(0, os.SEEK_END) < self.start:
                    self.start = 0
                file.seek(self.start)
                found = file.read()
        except OSError:
            return []
        whole = found[: found.rfind(b"\n") + 1]
        self.start += len(whole)
        return whole.decode("utf-8", "replace").split("\n")[:-1]
