"""Whether a device's work counts: what its status says, since when, and what ends it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.federated.client.participant import Participant, Readiness
from penstock.federated.client.standing import MOST_JSON, NUMBERS_S, Standings, shown
from penstock.federated.client.store import Store
from penstock.federated.daemon.config import DeviceConfig
from penstock.federated.daemon.device_status import device_status
from penstock.federated.protocol import MOST_REASON, Notice


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db") as made:
        yield made


def test_the_status_says_what_stands_in_the_way_and_since_when(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, standings = DeviceConfig(tmp_path), Standings(store.database)
    assert device_status(config)["standing"] == "not asked yet"
    monkeypatch.setattr(time, "time", lambda: 1e9)
    standings.after_query("", Notice(left_out="its data has shape [3], the model takes [6]"))
    monkeypatch.setattr(time, "time", lambda: 2e9)
    standings.after_query("", Notice(left_out="its data has shape [3], the model takes [6]"))
    found = device_status(config)
    assert found["standing"] == "sits out" and found["standing_since"] == "2001-09-09T01:46:40Z"
    assert found["standing_reason"] == "its data has shape [3], the model takes [6]"
    standings.after_query("on battery", Notice())
    assert standings.now().word == "not now"
    standings.after_query("", Notice(refused="a value is not finite"))
    assert standings.now().word == "refused" and standings.now().since == 2e9
    standings.after_query("", Notice())
    assert device_status(config)["standing"] == "takes part"
    assert device_status(config)["standing_since"] == ""


def test_a_task_ends_having_been_left_out(store: Store) -> None:
    standings = Standings(store.database)
    standings.after_query("", Notice(left_out="two nodes"))
    standings.after_task("label 9")
    assert (standings.now().word, standings.now().reason) == ("sits out", "label 9")
    standings.after_query("", None)
    assert standings.now().reason == "label 9", "until a task is done"
    standings.after_task()
    assert standings.now().word == "takes part"


def test_a_query_without_a_notice_ends_nothing_that_the_server_said(store: Store) -> None:
    """A server that was just started knows of no refusal; an older one sends no notice at all."""
    standings = Standings(store.database)
    standings.after_query("", Notice("its data has shape [3]", "a value is not finite"))
    standings.after_query("", None)
    assert standings.now().reason == "a value is not finite"
    standings.after_query("", Notice("its data has shape [3]"))
    standings.after_query("", None)
    assert standings.now().reason == "its data has shape [3]"
    standings.after_query("on battery", None)
    standings.after_task()
    assert standings.now().reason == "on battery"
    standings.after_query("", Notice())
    assert standings.now().word == "takes part"


def test_another_number_or_reason_is_no_new_beginning(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    standings, now = Standings(store.database), [1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    for reason in ("load 2.3", "load 2.4", "on battery; load 2.4"):
        standings.after_query(reason, None)
        assert standings.now().since == 1e9
        now[0] += 100
    assert standings.now().reason == "on battery; load 2.4"
    standings.after_query("", None)
    standings.after_query("load 2.4", None)
    assert standings.now().since == 1e9 + 300, "it took part meanwhile"


def test_a_changed_number_is_not_written_all_the_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    standings, now = Standings(store.database), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def is_written(reason: str, notice: Notice | None = None) -> bool:
        before = store.database.connection.total_changes
        now[0] += NUMBERS_S / 10
        standings.after_query(reason, notice)
        return store.database.connection.total_changes != before

    assert is_written("load 2.3, 0.31 is free")
    assert not is_written("load 12, 1,024.5 is free")
    assert is_written("load 12; on battery"), "other words, at once"
    assert not is_written("load 9; on battery")
    assert is_written("load 9; on battery", Notice("its data has shape [3]"))
    assert not is_written("load 9; on battery", Notice("its data has shape [4]"))
    now[0] += NUMBERS_S
    assert is_written("load 8; on battery", Notice("its data has shape [4]"))
    assert standings.now().reason == "its data has shape [4]"


def test_nothing_is_written_while_nothing_changes(store: Store) -> None:
    standings = Standings(store.database)
    standings.after_query("", Notice("no"))
    before = store.database.connection.total_changes
    standings.after_query("", Notice("no"))
    assert store.database.connection.total_changes == before


def test_a_reason_of_the_network_is_one_bounded_line_without_control_characters() -> None:
    assert shown("a\x1b[31mb\n\u202ec\x00") == "a [31mb c"
    assert len(shown("x" * 60_000)) == MOST_REASON
    assert len(json.dumps(shown("\U0001f600" * 500))) <= MOST_JSON


def test_a_bad_label_is_said_by_the_device_itself(store: Store) -> None:
    pytest.importorskip("torch")
    from tests.federated.client.test_participant import DEVICE, TASK, arrays_of, fill

    fill(store)
    store.add(np.ones((1, 6), np.float32), np.array([7]))
    ready = [Readiness()]
    device = Participant(store, DEVICE, readiness=lambda: ready[0])
    standings = Standings(store.database)
    assert device.capabilities().ready and standings.now().word == "takes part"
    device.train(TASK, arrays_of())
    assert standings.now().word == "sits out" and "label 7" in standings.now().reason
    ready[0] = Readiness("on battery")
    assert not device.capabilities().ready
    device.train(replace(TASK, round_number=2), arrays_of())
    assert "label 7" in standings.now().reason
    with store.database.writing() as db:
        db.execute("UPDATE samples SET label = 0 WHERE label = 7")
    ready[0] = Readiness()
    device.capabilities()
    result, _ = device.train(replace(TASK, round_number=3), arrays_of())
    assert not result.refused and standings.now().word == "takes part"


def test_evaluation_without_labels_is_no_matter_of_standing(store: Store) -> None:
    pytest.importorskip("torch")
    from tests.federated.client.test_participant import DEVICE, TASK, arrays_of

    store.add(np.ones((4, 6), np.float32), np.full(4, -1))
    device = Participant(store, DEVICE)
    device.capabilities()
    assert device.evaluate(TASK, arrays_of()).refused
    assert Standings(store.database).now().word == "takes part"


def test_a_notice_comes_with_a_query_and_anything_else_is_none() -> None:
    from types import SimpleNamespace
    from typing import Any, cast

    from penstock.federated.client.client_app import _notice
    from penstock.federated.flower_content import no_calls_home, to_content

    no_calls_home()
    pytest.importorskip("flwr")
    from tests.federated.client.test_participant import TASK

    said = Notice("its data has shape [3]")
    for record, found in ((said, said), (None, None), (replace(TASK, run="r"), Notice())):
        message = cast(Any, SimpleNamespace(content=to_content(record, None)))
        assert _notice(message) == found
