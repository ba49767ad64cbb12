"""Windows that are relabelled or deleted: the right ones, all or none; nothing stays on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import StorageError, UsageError
from penstock.federated.client.forget import Forgotten, Which, forget, parse_label
from penstock.federated.client.store import Store
from tests.federated.client.windows import labels, put_in, windows


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db") as made:
        made.add(windows(12), labels(12, 8), label_names=("a", "b", "c", "d"))
        yield made


def test_a_new_label_is_taken_where_it_is_asked_for(store: Store) -> None:
    wanted = np.array([3, 1, -1, 3])  # they have 0, 1, 2, 3
    with pytest.raises(UsageError, match="label 0, now it has 3.*--relabel"):
        store.add(windows(12)[:4], wanted)
    found = store.add(windows(12)[:4], wanted, relabel=True)
    assert (found.relabelled, found.labelled, found.known, found.new) == (1, 0, 3, 0)
    assert [put_in(store)[w.tobytes()] for w in windows(12)[:4]] == [3, 1, 2, 3]
    assert store.add(windows(12)[8:9], np.array([2]), relabel=True).labelled == 1


def test_a_file_that_contradicts_itself_is_refused_all_the_same(store: Store) -> None:
    twice = windows(12)[[0, 0]]
    before = put_in(store)
    for pair in ([0, 3], [3, 0], [2, 3]):
        with pytest.raises(UsageError, match="both in this file"):
            store.add(twice, np.array(pair), relabel=True)
    assert put_in(store) == before


def test_what_is_named_goes_and_the_rest_stays(store: Store) -> None:
    store.set_exemplars([1])
    store.add(windows(2, seed=5), np.array([0, -1]), chunk=4)
    gone = forget(store, Which(label=0, chunk=0))
    assert gone == Forgotten(2, 0, 1, False, False, ())
    assert forget(store, Which(label=-1)).unlabelled == 5
    assert forget(store, Which(chunk=4)).labelled == 1
    assert forget(store, Which(windows(12)[:3])).labelled == 2, "the first is gone already"
    assert set(put_in(store)) == {w.tobytes() for w in windows(12)[[3, 5, 6, 7]]}
    assert store.shape == (3, 32) and store.labels == ("a", "b", "c", "d")
    assert forget(store, Which(everything=True)) == Forgotten(4, 0, 0, True, False, ())
    assert not store.shape and not store.labels


def test_all_of_an_empty_store_opens_shape_and_names(store: Store) -> None:
    for chunk in (0, 1):
        store.begin_chunk("run", chunk)
    assert not put_in(store)
    assert not forget(store, Which(label=0)).emptied and store.shape == (3, 32)
    with pytest.raises(UsageError, match="forget --all"):
        store.add(np.ones((1, 5), np.float32), labels(1))
    assert forget(store, Which(everything=True)) == Forgotten(0, 0, 0, True, False, ())
    assert store.add(np.ones((1, 5), np.float32), labels(1), label_names=("x",)).new == 1


@pytest.mark.parametrize("which", [{}, {"everything": True, "label": 0}])
def test_nothing_is_deleted_unnamed(which: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="say which windows"):
        Which(**which)  # type: ignore[arg-type]


@pytest.mark.parametrize("default", ["OFF", "ON"])
def test_nothing_of_it_is_left_in_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: str
) -> None:
    """Also where SQLite overwrites nothing by default: Debian's does, others' do not."""
    connect = sqlite3.connect

    def as_built(*arguments: Any, **named: Any) -> sqlite3.Connection:
        made: sqlite3.Connection = connect(*arguments, **named)
        made.execute(f"PRAGMA secure_delete = {default}").fetchall()
        return made

    monkeypatch.setattr(sqlite3, "connect", as_built)
    marks = np.full((40, 3, 32), np.float32(1.2345678))
    marks[:, 0, 0] = np.arange(40)
    mark = marks[0, 0, 1:9].tobytes()
    path = tmp_path / "store.db"
    with Store.open(path) as store:
        store.add(marks, np.full(40, -1))
        store.add(windows(40), np.full(40, -1))
        assert _files_with(tmp_path, mark)
        gone = forget(store, Which(marks[1:]))
        assert gone.unlabelled == 39 and not gone.log_remains
        assert forget(store, Which(marks)).unlabelled == 1
        assert not _files_with(tmp_path, mark)
        held = store.database.connection.execute("PRAGMA secure_delete").fetchone()
        assert held == (1,), "also for what is deleted later; FAST, 2, leaves copies"
        assert store.counts().unlabelled == 40
    assert not _files_with(tmp_path, mark)


def test_a_reader_that_keeps_the_log_is_told_of(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.database.connection.execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(tmp_path / "store.db")
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM samples").fetchone()
    (tmp_path / "store.db.corrupt-7").touch()
    gone = forget(store, Which(label=0))
    assert gone.log_remains and gone.copies == (tmp_path / "store.db.corrupt-7",)
    reader.close()
    assert not forget(store, Which(label=0)).log_remains


def test_a_log_that_cannot_be_emptied_undoes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that writes right after: the windows are gone, and that is said."""
    store.database.connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(store.path, isolation_level=None)
    shrink = store.database.shrink

    def meanwhile() -> bool:
        other.execute("BEGIN IMMEDIATE")
        return shrink()

    with monkeypatch.context() as patch:
        patch.setattr(store.database, "shrink", meanwhile)
        gone = forget(store, Which(label=0))
    other.close()
    assert (gone.labelled, gone.log_remains) == (2, True)
    assert len(put_in(store)) == 10
    assert not forget(store, Which(label=0)).log_remains


def test_all_or_nothing(store: Store) -> None:
    with store.database.writing() as db:
        db.execute(
            "CREATE TEMP TRIGGER full BEFORE DELETE ON samples WHEN old.id = 5 "
            "BEGIN SELECT raise(ABORT, 'database or disk is full'); END"
        )
    with pytest.raises(StorageError, match="nothing was written"):
        forget(store, Which(everything=True))
    assert len(put_in(store)) == 12 and store.shape == (3, 32)


def test_a_label_by_name_or_number() -> None:
    assert parse_label("b", ("a", "b")) == 1
    assert parse_label("9", ("a", "b")) == 9, "one that has no name may be there"
    assert parse_label("-1", ()) == -1
    for text, names, expected in (
        ("walk", (), "a number from 0 on; -1 is none"),
        ("-7", (), "a number from 0 on; -1 is none"),
        ("-2", ("a", "b"), "one of a, b, or a number from 0 on"),
        ("9" * 30, (), "a number"),
    ):
        with pytest.raises(UsageError, match=f"is '{text}', expected {expected}"):
            parse_label(text, names)


def _files_with(folder: Path, mark: bytes) -> list[str]:
    return [path.name for path in folder.iterdir() if mark in path.read_bytes()]
