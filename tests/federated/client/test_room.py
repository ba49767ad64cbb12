"""The bound on a store's file: samples yield to rounds, labelled ones to nobody."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from penstock.errors import StorageError
from penstock.federated.arrays import Arrays
from penstock.federated.client import room
from penstock.federated.client.journal import Journal
from penstock.federated.client.rounds import GLOBAL, TEACHER, StoredModel
from penstock.federated.client.store import Added, Store
from penstock.federated.protocol import TrainResult
from tests.federated.client.windows import labels, put_in, windows


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


def test_windows_that_are_there_need_no_room(tmp_path: Path) -> None:
    """Labels are added by ingesting the same windows again: nothing goes for that."""
    with Store.open(tmp_path / "s.db", disk=1 << 20) as store:
        old, seed = windows(200), 1
        store.add(old, labels(200))
        while not store.add(windows(200, seed), labels(200)).evicted:
            seed += 1
        before = put_in(store)
        again = store.add(windows(200, seed), labels(200, 200))
        assert again == Added(new=0, labelled=200, known=0, evicted=0)
        assert put_in(store).keys() == before.keys()
        some = np.concatenate([windows(200, seed - 1), windows(50, 99)])  # what is in it stays too
        store.add(some, labels(250))
        assert {row.tobytes() for row in some} <= put_in(store).keys()


def test_samples_leave_room_for_the_rounds(tmp_path: Path) -> None:
    """A store that is full of labelled windows still takes models, messages and answers."""
    rng = np.random.default_rng(5)
    with Store.open(tmp_path / "s.db", disk=1 << 20) as store:
        for seed in range(40):
            with suppress(StorageError):
                store.add(windows(100, seed), labels(100, 100))
        full = store.counts().labelled
        assert full > 500
        journal = Journal(store.database)
        for number in range(1, 9):
            arrays: Arrays = {"w": rng.normal(size=4000).astype(np.float32)}
            content = arrays["w"].tobytes()
            part = {hashlib.sha256(content).hexdigest(): content}
            journal.check_room()
            journal.announce(str(number), 1, "train", 5e9, bytes(500), bytes(500))
            journal.hold(str(number), part)
            journal.check_room(2 * journal.nbytes(str(number)))
            for name in (GLOBAL, TEACHER):
                store.rounds.save_model(name, StoredModel(arrays, "{}", 1.0, "run", number, 0))
            result = TrainResult("d", "run", number)
            store.rounds.save_answer("train", "q", result, arrays)
            journal.answer(str(number), bytes(500), bytes(500), part, 1.0)
            journal.end(str(number), "sent")
        assert store.counts().labelled == full


def test_a_round_that_needs_more_gets_the_room_of_unlabelled_windows(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", disk=1 << 20) as store:
        store.add(windows(200), labels(200, 200))
        for seed in range(1, 12):
            store.add(windows(200, seed), labels(200))
        before = store.counts().unlabelled
        content = np.random.default_rng(0).bytes(500_000)
        journal = Journal(store.database)
        journal.announce("m", 1, "train", 5e9, b"", b"")
        journal.hold("m", {hashlib.sha256(content).hexdigest(): content})
        assert store.counts().labelled == 200 and store.counts().unlabelled < before
        with pytest.raises(StorageError, match="no room.*raise `disk`"):
            journal.check_room(900_000)
        journal.end("m", "sent")
        store.add(windows(10, 77), labels(10, 10))


def test_what_the_disk_cannot_keep_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "s.db") as store:
        journal = Journal(store.database)
        journal.check_room()
        with monkeypatch.context() as patched:
            nothing = SimpleNamespace(f_frsize=4096, f_blocks=1000, f_bfree=16, f_bavail=16)
            patched.setattr("os.statvfs", lambda _: nothing)
            with pytest.raises(StorageError, match="no room.*free space"):
                journal.check_room()
        # A disk that does not tell, as with a quota: after a write that failed, it is tried.
        store.database.refused = True
        journal.check_room(100_000)
        assert not store.database.refused
        store.database.refused = True
        monkeypatch.setattr(room, "_missing", lambda *_, **__: 0)
        store.database.bound(store.database.nbytes())
        with pytest.raises(StorageError, match="no room"):
            journal.check_room(1_000_000)
        assert store.database.refused


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
