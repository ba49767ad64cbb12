"""The store: nothing twice, nothing half-written."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import FormatError, UsageError
from penstock.federated.arrays import Arrays
from penstock.federated.client.rounds import GLOBAL, StoredModel
from penstock.federated.client.store import Added, Store
from penstock.federated.protocol import TrainResult
from tests.federated.client.windows import SHAPE, labels, windows


def test_what_was_added_comes_back(tmp_path: Path) -> None:
    inputs, classes = windows(20), labels(20, 5)
    with Store.open(tmp_path / "s.db") as store:
        assert store.add(inputs, classes) == Added(20, 0, 0, 0)
    with Store.open(tmp_path / "s.db") as store:
        data = store.training_data()
        np.testing.assert_array_equal(data.inputs, inputs)
        np.testing.assert_array_equal(data.labels, classes)
        assert store.shape == SHAPE


def test_the_same_window_is_one_and_takes_a_label_later(tmp_path: Path) -> None:
    inputs = windows(4)
    with Store.open(tmp_path / "s.db") as store:
        store.add(inputs, labels(4, 1))
        again = store.add(np.concatenate([inputs, inputs]), labels(8, 2))
        assert again == Added(new=0, labelled=1, known=7, evicted=0)
        assert store.counts().labelled == 2


def test_a_contradiction_adds_nothing(tmp_path: Path) -> None:
    inputs = windows(3)
    with Store.open(tmp_path / "s.db") as store:
        store.add(inputs[2:], np.array([1]))
        with pytest.raises(UsageError, match="window 2 .*label 1, now it has 3"):
            store.add(inputs, np.array([0, 0, 3]))
        assert store.counts().labelled == 1


@pytest.mark.parametrize(
    ("inputs", "names", "message"),
    [
        (np.zeros((1, 5), np.float32), (), "shape"),
        (windows(1), ("a", "b"), "label names"),
        (np.full((1, *SHAPE), np.nan, np.float32), (), "finite"),
    ],
)
def test_other_data_is_refused(
    tmp_path: Path, inputs: NDArray[np.float32], names: tuple[str, ...], message: str
) -> None:
    with Store.open(tmp_path / "s.db") as store:
        store.add(windows(2), labels(2), label_names=("x", "y", "z"))
        with pytest.raises(UsageError, match=message):
            store.add(inputs, labels(1), label_names=names)
        assert store.counts().unlabelled == 2


def test_a_label_beyond_the_names_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        with pytest.raises(UsageError, match="2 label names"):
            store.add(windows(1), np.array([2]), label_names=("x", "y"))
        assert store.shape == ()


def test_the_next_chunk_deletes_the_raw_data_of_the_last(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        store.add(windows(10), labels(10))
        store.add(windows(5, 1), labels(5), chunk=1)
        assert store.begin_chunk("run", 0) == 0
        assert len(store.training_data()) == 10, "those of chunk 1 wait"
        store.add(windows(3, 2), labels(3))  # came in chunk 0, first used in chunk 1
        assert store.begin_chunk("run", 1) == 10
        assert len(store.training_data()) == 8
        assert store.begin_chunk("run", 1) == 0, "asked again"
        assert store.begin_chunk("run", 0) == 0, "a server that went back"
        assert len(store.training_data()) == 8
        with pytest.raises(UsageError, match="chunk 1 has begun"):
            store.add(windows(1, 3), labels(1), chunk=0)


def test_a_new_run_begins_with_what_is_there(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        store.add(windows(10), labels(10))
        store.begin_chunk("one", 0)
        store.begin_chunk("one", 3)  # chunks 1 and 2 went by without us
        store.add(windows(4, 1), labels(4))
        store.begin_chunk("one", 3)
        assert store.begin_chunk("two", 0) == 0
        assert (store.chunk, len(store.training_data())) == (0, 4)


def test_exemplars_outlive_their_chunk(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        store.add(windows(10), labels(10, 10))
        store.begin_chunk("run", 0)
        numbers, data = store.labelled_windows()
        store.set_exemplars(numbers[:2])
        store.begin_chunk("run", 1)
        assert not len(store.training_data())
        np.testing.assert_array_equal(store.training_data(exemplars=True).inputs, data.inputs[:2])


def test_most_bytes_keeps_labelled_ones_and_the_newest(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        store.add(windows(10), labels(10, 2))
        data = store.training_data(4 * 96 * 4)
        np.testing.assert_array_equal(data.inputs, windows(10)[[0, 1, 8, 9]])


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    Store.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(FormatError, match="newer Penstock"):
        Store.open(path)


def test_models_and_answers_come_back_or_not_at_all(tmp_path: Path) -> None:
    arrays: Arrays = {"w": windows(2), "n": np.array(7, np.int64)}
    result = TrainResult("d" * 16, "run", 3, examples=5)
    with Store.open(tmp_path / "s.db") as store:
        rounds = store.rounds
        rounds.save_model(GLOBAL, StoredModel(arrays, "{}", 0.5, "run", 3, 1))
        rounds.save_answer("train", "q", result, None)
        found = rounds.model(GLOBAL)
        assert found is not None and found.arrays["n"].shape == () and found.ratio == 0.5
        np.testing.assert_array_equal(found.arrays["w"], arrays["w"])
        assert rounds.answer("train", "run", 3, "q") == (result, None)
        assert rounds.answer("train", "run", 3, "another question") is None
        for number in range(4, 20):
            rounds.save_answer("train", "q", TrainResult("d", "run", number), None)
        assert rounds.answer("train", "run", 3, "q") is None, "only the last few are kept"
        with store.database.writing() as db:
            db.execute("UPDATE models SET arrays = zeroblob(length(arrays))")
        assert rounds.model(GLOBAL) is None


def test_the_newest_answers_are_kept_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 2e9
    monkeypatch.setattr("time.time", lambda: now)
    with Store.open(tmp_path / "s.db") as store:
        for number in range(1, 9):
            store.rounds.save_answer("train", "q", TrainResult("d", "run", number), None)
            assert store.rounds.answer("train", "run", number, "q") is not None
            now -= 1000  # it is set back each time
        last = store.rounds.last_answer()
        assert last is not None and last.round_number == 8


ADD = """
import sys
from pathlib import Path
import numpy as np
from penstock.federated.client.store import Store
rng = np.random.default_rng(int(sys.argv[2]))
for _ in range(10):
    with Store.open(Path(sys.argv[1])) as store:
        store.add(rng.normal(size=(20, 3, 32)).astype("f4"), np.full(20, -1))
"""


def test_two_processes_add_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    children = [
        subprocess.Popen([sys.executable, "-c", ADD, str(path), seed]) for seed in ("1", "2")
    ]
    assert [child.wait(120) for child in children] == [0, 0]
    with Store.open(path) as store:
        assert store.counts().unlabelled == 400
