"""The worker with a server that fails: what waits, what is given up, and that the rest goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.federated.client.database import Database
from penstock.federated.client.journal import Entry, Journal
from penstock.federated.daemon import work
from penstock.federated.daemon.fleet_errors import (
    NotTaken,
    RunOver,
    ServerFault,
    Unreachable,
)
from penstock.federated.daemon.pipes import Reporter, Stop
from penstock.federated.daemon.work import Worker


class FailingFleet:
    """A connection on which the messages of some runs fail.

    Attributes:
        sent: runs of the replies that got through.
    """

    def __init__(self) -> None:
        self.node_id = 7
        self.failures: dict[int, BaseException] = {}
        self.sent: list[int] = []

    def pull_parts(self, run_id: int, *rest: object) -> dict[str, bytes]:
        self._fail(run_id)
        return {}

    def confirm(self, run_id: int, message_id: str) -> None:
        self._fail(run_id)

    def send(self, run_id: int, *rest: object) -> None:
        self._fail(run_id)
        self.sent.append(run_id)

    def _fail(self, run_id: int) -> None:
        if run_id in self.failures:
            raise self.failures[run_id]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return 1e6

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    database = Database(tmp_path / "s.db")
    yield Journal(database)
    database.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(work, "time", made)
    return made


def worker(fleet: FailingFleet, journal: Journal) -> Worker:
    def app() -> Any:
        raise AssertionError("no message here is for the app")

    return Worker(fleet, journal, app, Stop(), Reporter(None))  # type: ignore[arg-type]


def announce(journal: Journal, *runs: int) -> None:
    for run in runs:
        journal.announce(str(run), run, "train", 2e6, b"", b"")


def answered(journal: Journal, *runs: int) -> None:
    announce(journal, *runs)
    for run in runs:
        journal.hold(str(run), {})
        journal.confirmed(str(run))
        journal.answer(str(run), b"", b"", {}, 0.5)


def test_what_the_server_fails_at_keeps_nothing_else_waiting(
    journal: Journal, clock: Clock
) -> None:
    fleet = FailingFleet()
    answered(journal, 1, 2)
    fleet.failures[1] = ServerFault("HTTP 500: the disk is full")
    made = worker(fleet, journal)
    assert made.work_off() == 1 and fleet.sent == [2]
    assert made.work_off() == 0, "its next try is later"
    for _ in range(20):  # far more than five seconds of faults
        clock.now += 61
        made.work_off()
    (entry,) = journal.open_messages()
    assert entry.state == "answered", "the reply is not given up"
    del fleet.failures[1]
    made.work_off()
    assert fleet.sent == [2]
    clock.now += 61
    assert made.work_off() == 1 and fleet.sent == [2, 1]
    assert journal.outcomes() == {"sent": 2}


def test_a_leaving_node_sends_what_it_can(journal: Journal, clock: Clock) -> None:
    fleet = FailingFleet()
    answered(journal, 1, 2, 3)
    fleet.failures |= {1: ServerFault("HTTP 404"), 2: RunOver("over")}
    worker(fleet, journal).send_ready()
    assert fleet.sent == [3] and journal.outcomes() == {"sent": 1, "gone": 1}


def test_a_reply_that_is_not_taken_is_not_called_sent(journal: Journal, clock: Clock) -> None:
    fleet = FailingFleet()
    answered(journal, 1)
    fleet.failures[1] = NotTaken("too late")
    assert worker(fleet, journal).work_off() == 1
    assert journal.outcomes() == {"gone": 1}


def test_a_message_that_ends_the_process_while_it_comes_in_is_given_up(
    journal: Journal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up: list[str] = []

    def answer(self: Worker, entry: Entry, failure: Exception | None) -> None:
        given_up.append(str(failure))
        self._journal.answer(entry.id, b"", b"", {}, 0.0)

    monkeypatch.setattr(Worker, "_answer", answer)
    fleet = FailingFleet()
    announce(journal, 1)
    fleet.failures[1] = Unreachable("cut")
    for _ in range(10):  # the network's failures do not count
        with pytest.raises(Unreachable):
            worker(fleet, journal).work_off()
    fleet.failures[1] = KeyboardInterrupt()  # as if the system had killed it
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            worker(fleet, journal).work_off()
    assert not given_up
    fleet.failures.clear()
    assert worker(fleet, journal).work_off() == 1
    assert len(given_up) == 1 and "ended 3 times" in given_up[0] and fleet.sent == [1]
