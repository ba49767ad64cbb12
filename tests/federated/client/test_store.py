"""The store: nothing twice, nothing half-written, nothing lost that can be read."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.errors import FormatError, StorageError, UsageError
from penstock.federated.arrays import Arrays
from penstock.federated.client.rounds import GLOBAL, StoredModel
from penstock.federated.client.store import Added, Store
from penstock.federated.protocol import TrainResult

SHAPE = (3, 32)


def windows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def labels(count: int, labelled: int = 0) -> NDArray[np.int64]:
    found = np.full(count, -1, np.int64)
    found[:labelled] = np.arange(labelled) % 4
    return found


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


def test_the_bound_on_the_disk_evicts_old_unlabelled_windows(tmp_path: Path) -> None:
    bound = 1 << 20
    with Store.open(tmp_path / "s.db", disk=bound) as store:
        store.add(windows(300), labels(300, 300))
        evicted = 0
        for seed in range(1, 12):
            evicted += store.add(windows(200, seed), labels(200)).evicted
        counts = store.counts()
        assert counts.labelled == 300, "labels are not thrown away"
        assert evicted and counts.unlabelled + evicted == 2200
        newest = store.training_data().inputs[-200:]
        np.testing.assert_array_equal(newest, windows(200, 11))
    assert (tmp_path / "s.db").stat().st_size <= bound


def test_no_room_for_labelled_windows_is_said(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", disk=1 << 20) as store:
        store.add(windows(400), labels(400, 400))
        with pytest.raises(StorageError, match="no room.*nothing was written"):
            store.add(windows(4000, 1), labels(4000, 4000))
        assert store.counts().labelled == 400
        store.add(windows(10, 2), labels(10))  # and it goes on


FILL = """
import resource, sys
from pathlib import Path
import numpy as np
from penstock.federated.client.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
with Store.open(Path(sys.argv[1])) as store:
    store.add(np.random.default_rng(1).normal(size=(4000, 3, 32)).astype("f4"), np.full(4000, -1))
"""


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store.open(path) as store:
        store.add(windows(50), labels(50))
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, timeout=120
    )
    assert "StorageError" in done.stderr and "nothing was written" in done.stderr
    with Store.open(path) as store:
        assert store.salvage is None and store.counts().unlabelled == 50
        np.testing.assert_array_equal(store.training_data().inputs, windows(50))


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


# ---------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "s.db"
    with Store.open(path) as store:
        store.add(windows(200), labels(200, 40), label_names=("a", "b", "c", "d"))
        store.begin_chunk("run", 2)
    return path.read_bytes()


def read_damaged(path: Path, data: bytes) -> tuple[Store, set[bytes]]:
    path.write_bytes(data)
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    store = Store.open(path)
    return store, {row.tobytes() for row in store.training_data().inputs}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=20),
)
def test_any_damage_is_survived(
    tmp_path: Path, whole: bytes, cut: float, flips: list[tuple[float, int]]
) -> None:
    """Whatever is wrong with the file: it opens, and gives only windows that were put in."""
    data = bytearray(whole[: max(1, int(cut * len(whole)))])
    for place, value in flips:
        data[int(place * (len(data) - 1))] ^= value
    store, found = read_damaged(tmp_path / "s.db", bytes(data))
    with store:
        assert found <= {row.tobytes() for row in windows(200)}
        store.add(windows(1, 99), labels(1))


@pytest.mark.parametrize(
    ("begin", "end", "least"), [(0, 3000, 200), (16, 24, 200), (60_000, 60_050, 190)]
)
def test_damage_in_one_place_costs_what_lies_there(
    tmp_path: Path, whole: bytes, begin: int, end: int, least: int
) -> None:
    data = bytearray(whole)
    data[begin:end] = b"\xa5" * (end - begin)
    store, found = read_damaged(tmp_path / "s.db", bytes(data))
    with store:
        assert len(found) >= least
        if store.salvage is not None:
            assert store.salvage.moved_to.read_bytes() == bytes(data), "the evidence stays"
            assert store.labels == ("a", "b", "c", "d") and store.chunk == 2


def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path) -> None:
    store, found = read_damaged(tmp_path / "s.db", b"not a database at all" * 1000)
    with store:
        assert store.salvage is not None and store.salvage.samples == 0 and not found
        assert "lies at" in str(store.salvage)


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


def test_a_store_that_was_moved_aside_is_noticed(tmp_path: Path) -> None:
    """By another process, an ingest, that met the damage first."""
    path = tmp_path / "s.db"
    with Store.open(path) as store:
        store.add(windows(3), labels(3))
        assert not store.database.must_reopen()
        path.rename(tmp_path / "aside")
        assert store.database.must_reopen()
        Store.open(path).close()
        assert store.database.must_reopen()


def test_damage_met_while_open_is_said(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(whole)
    with Store.open(path) as store:
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * (len(whole) - 4096))
        with pytest.raises(StorageError, match="start again"):
            store.database.connection.execute("PRAGMA cache_size = 0")
            store.training_data()
            store.add(windows(1, 9), labels(1))
        assert store.database.must_reopen()
    with Store.open(path) as store:
        assert store.salvage is not None
