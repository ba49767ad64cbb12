"""The journal: what is in it after a crash at any step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.federated.client.database import Database
from penstock.federated.client.journal import Journal

RUN = (1 << 64) - 5  # more than SQLite's integers hold


def part(content: bytes) -> dict[str, bytes]:
    return {hashlib.sha256(content).hexdigest(): content}


OPENED: list[Database] = []


def reopened(path: Path) -> Journal:
    """As the next process sees it; the last one was killed and closed nothing."""
    OPENED.append(Database(path))
    return Journal(OPENED[-1])


@pytest.fixture(autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def test_every_step_is_there_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    reopened(path).announce("m", RUN, "train", 5e9, b"head", b"tree")
    (entry,) = reopened(path).open_messages()
    assert (entry.state, entry.run_id, entry.attempts, entry.confirmed) == (
        "announced",
        RUN,
        0,
        False,
    )
    reopened(path).hold("m", part(b"a") | part(b"b"))
    reopened(path).confirmed("m")
    assert reopened(path).begin("m") == 1
    assert reopened(path).begin("m") == 2
    reopened(path).interrupted("m")
    held = reopened(path).entry("m")
    assert held is not None and (held.state, held.attempts, held.confirmed) == ("held", 1, True)
    assert reopened(path).parts("m", reply=False) == part(b"a") | part(b"b")
    reopened(path).answer("m", b"rh", b"rt", part(b"r"), 1.5)
    ready = reopened(path).entry("m")
    assert ready is not None and (ready.state, ready.reply_head, ready.seconds) == (
        "answered",
        b"rh",
        1.5,
    )
    assert reopened(path).parts("m", reply=True) == part(b"r")
    assert not reopened(path).parts("m", reply=False), "the question's parts are gone"
    reopened(path).end("m", "sent")
    assert reopened(path).open_messages() == []
    assert reopened(path).outcomes() == {"sent": 1}


def test_a_message_handed_out_twice_is_one(tmp_path: Path) -> None:
    journal = reopened(tmp_path / "s.db")
    journal.announce("m", 1, "train", 5e9, b"head", b"tree")
    journal.hold("m", part(b"a"))
    journal.announce("m", 1, "train", 5e9, b"head", b"tree")
    (entry,) = journal.open_messages()
    assert entry.state == "held"


def test_a_damaged_part_is_not_used(tmp_path: Path) -> None:
    journal = reopened(tmp_path / "s.db")
    journal.announce("m", 1, "train", 5e9, b"head", b"tree")
    journal.hold("m", part(b"good") | {"0" * 64: b"damaged"})
    assert journal.parts("m", reply=False) == part(b"good")


def test_old_outcomes_are_forgotten(tmp_path: Path) -> None:
    journal = reopened(tmp_path / "s.db")
    for number in range(205):
        journal.announce(str(number), 1, "query", 5e9, b"", b"")
        journal.end(str(number), "sent")
    assert journal.outcomes() == {"sent": 200}


def test_the_order_is_that_of_arrival_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 2e9
    monkeypatch.setattr("time.time", lambda: now)
    journal = reopened(tmp_path / "s.db")
    for number in range(205):
        journal.announce(f"old {number}", 1, "query", 5e9, b"", b"")
        journal.end(f"old {number}", "sent")
    for name in "abc":
        now -= 1000  # it is set back each time
        journal.announce(name, 1, "query", 5e9, b"", b"")
    assert [entry.id for entry in journal.open_messages()] == ["a", "b", "c"]
    journal.end("a", "gone")
    assert journal.outcomes() == {"sent": 199, "gone": 1}, "the last is not forgotten first"
