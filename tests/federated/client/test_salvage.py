"""Damaged stores: whatever is whole is taken over, once, however often that is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock.errors import FormatError, StorageError
from penstock.federated.client import salvage
from penstock.federated.client.store import Store
from tests.federated.client.windows import labels, put_in, windows


class File(bytes):
    """Shown short: half a megabyte hides which damage failed."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "s.db"
    with Store.open(path) as store:
        store.add(windows(200), labels(200, 40), label_names=("a", "b", "c", "d"))
        store.begin_chunk("run", 2)
    return File(path.read_bytes())


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
@example(cut=1.0, flips=[(0.015625, 128)])  # the schema is not UTF-8, which Python says
@example(cut=1.0, flips=[(0.019817532194766573, 227)])  # a column has another name
@example(cut=1.0, flips=[(0.07299847623291622, 186)])  # a label's name is not UTF-8
@example(cut=1.0, flips=[(0.00011010852175833526, 97)])  # SQLite may only read it
@example(cut=1.0, flips=[(0.0003733730289712328, 255)])  # the number of the schema
@example(  # a label below 0
    cut=0.611997828051786,
    flips=[
        (0.718659604539613, 135),
        (0.0, 1),
        (0.3340105322041469, 40),
        (0.6581241954113426, 247),
        (0.0, 251),
    ],
)
@example(cut=1.0, flips=[(0.17858184528804966, 213), (0.406688083244585, 177)])
def test_any_damage_is_survived(
    tmp_path: Path, whole: bytes, cut: float, flips: list[tuple[float, int]]
) -> None:
    """Whatever is wrong with the file: it opens, and gives only windows that were put in."""
    data = bytearray(whole[: max(1, int(cut * len(whole)))])
    for place, value in flips:
        data[int(place * (len(data) - 1))] ^= value
    try:
        store, found = read_damaged(tmp_path / "s.db", bytes(data))
    except FormatError:
        assert data[60:64] != whole[60:64], "the number of the schema may be a newer Penstock's"
        return
    pages = [whole[at : at + 4096] for at in range(0, len(whole), 4096)]
    intact = [page for at, page in enumerate(pages) if data[4096 * at : 4096 * at + 4096] == page]
    with store:
        assert found <= {row.tobytes() for row in windows(200)}
        if all(page in intact for page in pages if page[0] == 5):  # else nothing leads to the rest
            kept = b"".join(intact)
            least = {row.tobytes() for row in windows(200) if row.tobytes() in kept}
            assert least <= put_in(store).keys()
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


def test_a_damaged_page_costs_the_windows_on_it_and_no_others(tmp_path: Path, whole: bytes) -> None:
    pages = [whole[at : at + 4096] for at in range(0, len(whole), 4096)]
    lost_somewhere = False
    for number, page in enumerate(pages):
        if number and page[0] == 5:
            continue  # it says where the others are
        there = {row.tobytes() for row in windows(200) if row.tobytes() in page}
        damaged = b"".join([*pages[:number], b"\xa5" * 4096, *pages[number + 1 :]])
        store, _ = read_damaged(tmp_path / "s.db", damaged)
        with store:
            lost = {row.tobytes() for row in windows(200)} - put_in(store).keys()
            assert lost <= there, f"page {number}"
        lost_somewhere |= bool(lost)
    assert lost_somewhere


def test_a_salvage_that_is_cut_off_goes_on_at_the_next_opening(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, left = tmp_path / "s.db", salvage._is_whole, 0
    monkeypatch.setattr(salvage, "PART_BYTES", 10_000)

    def cut_off(row: salvage.Row) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt  # as by kill -9: nothing after it is done
        return real(row)

    path.write_bytes(b"\xa5" * 3000 + whole[3000:])
    monkeypatch.setattr(salvage, "_is_whole", cut_off)
    for rows in (0, 100, 199):
        left = rows
        with pytest.raises(KeyboardInterrupt):
            Store.open(path)
    monkeypatch.undo()
    with Store.open(path) as store:
        assert store.salvage is not None and "not all taken over" in str(store.salvage)
        assert store.salvage.samples == 200
        found = put_in(store)
        assert found.keys() == {row.tobytes() for row in windows(200)}
        assert sum(label is not None for label in found.values()) == 40
        assert store.labels == ("a", "b", "c", "d") and store.chunk == 2
        store.begin_chunk("run", 3)
    with Store.open(path) as store:
        assert store.salvage is None and not put_in(store), "and is not done twice"


def test_a_salvage_without_room_loses_nothing(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"\xa5" * 3000 + whole[3000:])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", full)
        for _ in range(2):
            with pytest.raises(StorageError, match="no room.*free"):
                Store.open(path)
    with Store.open(path, disk=1 << 20) as store:
        assert len(put_in(store)) == 200
        assert store.database.connection.execute("PRAGMA max_page_count").fetchone() == (256,)


def test_damaged_stores_do_not_fill_the_disk(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "s.db"
    last = b""
    for number in range(5):
        with Store.open(path) as store:
            store.add(windows(5, number), labels(5))
        last = b"\xa5" * 3000 + path.read_bytes()[3000:]
        path.write_bytes(last)
    with Store.open(path) as store:
        assert store.salvage is not None
        assert store.salvage.moved_to.read_bytes() == last
        assert len(put_in(store)) == 25
    assert len(list(tmp_path.glob("s.db.*-*"))) == 2


def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path) -> None:
    store, found = read_damaged(tmp_path / "s.db", b"not a database at all" * 1000)
    with store:
        assert store.salvage is not None and store.salvage.samples == 0 and not found
        assert "lies at" in str(store.salvage)


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
