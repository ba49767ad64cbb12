"""Windows that are relabelled or deleted: the right ones, all or none; nothing stays on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

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


@pytest.mark.parametrize("which", [{}, {"everything": True, "label": 0}])
def test_nothing_is_deleted_unnamed(which: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="say which windows"):
        Which(**which)  # type: ignore[arg-type]


def test_nothing_of_it_is_left_in_any_file(tmp_path: Path) -> None:
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
    with pytest.raises(UsageError, match="expected a number"):
        parse_label("walk", ())


def _files_with(folder: Path, mark: bytes) -> list[str]:
    return [path.name for path in folder.iterdir() if mark in path.read_bytes()]
