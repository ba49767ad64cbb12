"""The steps of one message on a device whose disk is full, store is busy or clock is wrong."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import StorageError
from penstock.federated.client.journal import Journal
from penstock.federated.client.store import Store
from penstock.federated.daemon import work
from penstock.federated.daemon.fleet_errors import ClockWrong, Unreachable
from penstock.federated.daemon.flower_fleet import Incoming
from penstock.federated.daemon.flower_messages import Outgoing
from penstock.federated.daemon.pipes import Reporter, Stop
from penstock.federated.daemon.work import Worker

CONTENT = np.random.default_rng(0).bytes(100_000)
PARTS = {hashlib.sha256(CONTENT).hexdigest(): CONTENT}


class PlayedFleet:
    """A server that hands out one message, once."""

    node_id = 7

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.waiting: list[Incoming] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: object) -> Any:
            self.calls.append(name)
            if name in self.fails:
                raise self.fails[name]
            if name == "pull" and self.waiting:
                return self.waiting.pop()
            return PARTS if name == "pull_parts" else None

        return call


class Played:
    """A worker, its store and its server; the app does what `app` says."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = Store.open(path / "s.db", disk=1 << 20)
        self.journal, self.fleet = Journal(self.store.database), PlayedFleet()
        self.worked = 0
        self.app: Callable[[], None] = lambda: None
        self.worker = Worker(
            self.fleet,  # type: ignore[arg-type]
            self.journal,
            lambda: None,  # type: ignore[arg-type, return-value]
            Stop(),
            Reporter(None),
        )

        def run_app(app: object, *_: object) -> Outgoing:
            if isinstance(app, Exception):
                return Outgoing(str(app).encode(), b"", {})
            self.worked += 1
            self.app()
            return Outgoing(b"reply", b"tree", PARTS)

        monkeypatch.setattr(work, "run_app", run_app)

    def announce(self, expires_at: float = 5e9) -> None:
        self.journal.announce("m", 1, "train", expires_at, b"head", b"tree")

    def bound(self, nbytes: int) -> None:
        """The room that is left."""
        pages = self.store.database.connection.execute("PRAGMA page_count").fetchone()[0]
        self.store.database.bound(4096 * pages + nbytes)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    made = Played(tmp_path, monkeypatch)
    yield made
    made.store.close()


def test_a_message_is_worked_off(played: Played) -> None:
    played.announce()
    assert played.worker.work_off() == 1 and played.worked == 1
    assert played.fleet.calls == ["pull_parts", "confirm", "send"]
    assert played.journal.outcomes() == {"sent": 1}


def test_without_room_the_server_is_not_asked(played: Played) -> None:
    """It hands each message out once: what then cannot be written would be lost."""
    played.bound(0)
    with pytest.raises(StorageError, match="no room"):
        played.worker.take()
    assert played.fleet.calls == []
    played.store.database.bound(1 << 20)
    assert not played.worker.take() and played.fleet.calls == ["pull"]


def test_what_was_handed_out_while_the_store_was_busy_is_kept(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    played.fleet.waiting = [Incoming("m", 1, "train", 5e9, b"head", b"tree")]

    def busy(*_: object) -> None:
        raise StorageError("database is locked; nothing was written")

    with monkeypatch.context() as patched:
        patched.setattr(played.journal, "announce", busy)
        for _ in range(2):
            with pytest.raises(StorageError, match="locked"):
                played.worker.take()
    assert played.worker.take() and played.fleet.calls == ["pull"]
    assert not played.worker.take(), "once"
    assert played.worker.work_off() == 1 and played.journal.outcomes() == {"sent": 1}


def test_what_did_not_fit_is_downloaded_once(played: Played) -> None:
    played.announce()
    played.bound(66_000)
    for _ in range(3):
        with pytest.raises(StorageError, match="no room"):
            played.worker.work_off()
    assert played.fleet.calls == ["pull_parts"], "a metered link pays for each"
    played.store.database.bound(1 << 20)
    assert played.worker.work_off() == 1
    assert played.journal.outcomes() == {"sent": 1}


def test_full_or_busy_is_no_crash(played: Played) -> None:
    """However often: it is worked on when there is room, and answered then."""
    played.announce()

    def busy() -> None:
        raise StorageError("database is locked; nothing was written")

    played.app = busy
    for _ in range(5):
        with pytest.raises(StorageError):
            played.worker.work_off()
        (entry,) = played.journal.open_messages()
        assert (entry.state, entry.attempts) == ("held", 0)
    played.app = lambda: None
    assert played.worker.work_off() == 1 and played.worked == 6
    assert played.journal.outcomes() == {"sent": 1}


def test_without_room_for_the_answer_nothing_is_trained(played: Played) -> None:
    played.announce()
    played.journal.hold("m", PARTS)
    played.bound(66_000)
    for _ in range(2):
        with pytest.raises(StorageError, match="no room"):
            played.worker.work_off()
    assert played.worked == 0
    played.store.database.bound(1 << 20)
    assert played.worker.work_off() == 1 and played.worked == 1


def test_what_ended_the_process_three_times_is_given_up(played: Played) -> None:
    played.announce()

    def crash() -> None:
        raise KeyboardInterrupt

    played.app = crash
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            played.worker.work_off()
    assert played.worker.work_off() == 1 and played.worked == 3


@pytest.mark.parametrize("state", ["announced", "held", "answered"])
def test_a_clock_that_is_wrong_ends_no_message(played: Played, state: str) -> None:
    played.announce(time.time() - 2 * work.LATE_S)
    if state != "announced":
        played.journal.hold("m", PARTS)
    if state == "answered":
        played.journal.answer("m", b"reply", b"tree", PARTS, 1.0)
    played.fleet.fails["heartbeat"] = ClockWrong("this device's clock is 7200 s ahead")
    with pytest.raises(ClockWrong):
        played.worker.work_off()
    assert len(played.journal.open_messages()) == 1
    played.fleet.fails["heartbeat"] = Unreachable("no network")
    with pytest.raises(Unreachable):
        played.worker.work_off()
    played.fleet.fails.clear()
    played.worker.work_off()
    outcome = "sent" if state == "answered" else "expired"
    assert played.journal.outcomes() == {outcome: 1}, "a reply has its one try"


def test_a_late_reply_that_cannot_be_sent_does_not_stay(played: Played) -> None:
    played.announce(time.time() - 2 * work.LATE_S)
    played.journal.hold("m", PARTS)
    played.journal.answer("m", b"reply", b"tree", PARTS, 1.0)
    played.fleet.fails["send"] = Unreachable("413: too large for the proxy")
    played.worker.work_off()
    assert played.journal.outcomes() == {"expired": 1}
