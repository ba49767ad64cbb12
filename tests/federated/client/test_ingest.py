"""Files of windows: what is right comes in whole, what is wrong is named and changes nothing."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from penstock.errors import FormatError, PenstockError, UsageError
from penstock.federated.client.ingest import ingest
from penstock.federated.client.ingest_csv import CsvLayout, parse_shape
from penstock.federated.client.labels import parse_label_names
from penstock.federated.client.store import Store

RANGE = st.floats(-1e6, 1e6, width=32)
ONE_FOLDER = [HealthCheck.function_scoped_fixture]


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- what comes in


@settings(max_examples=25, deadline=None, suppress_health_check=ONE_FOLDER)
@given(
    table=hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 7)), elements=RANGE),
    data=st.data(),
)
def test_csv_gives_back_what_was_written(
    tmp_path: Path, table: NDArray[np.float32], data: st.DataObject
) -> None:
    rows, columns = table.shape
    labels = data.draw(st.lists(st.integers(-1, 5), min_size=rows, max_size=rows))
    names = [f"x{i}" for i in range(columns)]
    text = ",".join([*names, "label"]) + "\n"
    for values, label in zip(table, labels, strict=True):
        cells = [repr(float(v)) for v in values] + ["" if label < 0 else str(label)]
        text += ",".join(cells) + "\r\n"
    path = put(tmp_path / "t.csv", text)
    (tmp_path / "s.db").unlink(missing_ok=True)
    with Store.open(tmp_path / "s.db") as store:
        try:
            found = ingest(store, path)
        except UsageError as error:  # the same window twice with two labels
            assert "which is right" in str(error)
            return
        got = store.training_data()
        assert found.windows == rows
        assert {row.tobytes() for row in got.inputs} == {row.tobytes() for row in table}


@settings(max_examples=15, deadline=None, suppress_health_check=ONE_FOLDER)
@given(
    inputs=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int16]),
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)),
        elements=st.integers(-99, 99),
        unique=True,
    )
)
def test_npz_gives_back_what_was_written(tmp_path: Path, inputs: NDArray[np.float32]) -> None:
    np.savez_compressed(tmp_path / "t.npz", inputs=inputs)
    (tmp_path / "s.db").unlink(missing_ok=True)
    with Store.open(tmp_path / "s.db") as store:
        ingest(store, tmp_path / "t.npz")
        np.testing.assert_array_equal(store.training_data().inputs, inputs.astype(np.float32))


def test_names_stand_for_numbers_and_are_kept(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", "a,b,what\n1,2,sit\n3,4,\n5,6,walk\n")
    with Store.open(tmp_path / "s.db") as store:
        ingest(store, path, label_names=("walk", "sit"), layout=CsvLayout(label="what"))
        assert store.training_data().labels.tolist() == [1, -1, 0]
        more = put(tmp_path / "more.csv", "a,b,label\n7,8,sit\n")
        ingest(store, more)  # the store knows the names
        assert store.training_data().labels.tolist() == [1, -1, 0, 1]
        np.savez(tmp_path / "t.npz", inputs=[[9.0, 9.0]], labels=np.array(["walk"]))
        ingest(store, tmp_path / "t.npz")
        assert store.training_data().labels.tolist() == [1, -1, 0, 1, 0]


def test_rows_over_time_become_windows(tmp_path: Path) -> None:
    rows = "".join(f"{i},u,{i},{-i},{'walk' if i < 6 else 'sit'}\n" for i in range(10))
    path = put(tmp_path / "t.csv", "time,user,ax,ay,label\n" + rows)
    layout = CsvLayout(ignore=("time", "user"), window=4, step=2)
    with Store.open(tmp_path / "s.db") as store:
        ingest(store, path, label_names=("walk", "sit"), layout=layout)
        data = store.training_data()
    assert data.inputs.shape == (4, 2, 4)
    assert data.inputs[1].tolist() == [[2, 3, 4, 5], [-2, -3, -4, -5]]
    assert data.labels.tolist() == [0, 0, -1, 1], "the third has rows of both"


def test_rows_fold_into_a_shape(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", "a,b,c,d\n1,2,3,4\n")
    with Store.open(tmp_path / "s.db") as store:
        ingest(store, path, layout=CsvLayout(shape=parse_shape("2x2")))
        assert store.training_data().inputs.tolist() == [[[1, 2], [3, 4]]]


def test_labels_as_pandas_writes_them_beside_empty_cells(tmp_path: Path) -> None:
    rows = "1,1.0\n2,\n3,NaN\n4,0.\n5,-1.0\n6,2\n"
    with Store.open(tmp_path / "s.db") as store:
        ingest(store, put(tmp_path / "t.csv", "a,label\n" + rows))
        assert sorted(store.training_data().labels.tolist()) == [-1, -1, -1, 0, 1, 2]
        named = put(tmp_path / "n.csv", "a,label\n7,nan\n")
        ingest(store, named, label_names=("walk", "sit", "nan"))
        assert store.counts().labelled == 4, "what is a class's name is no empty label"


# ---------------------------------------------------------------- what does not


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 columns"),
        ("a,b\n", "no row"),
        ("1,2\n3,4\n", "header"),
        ("a,a\n1,2\n", "header has"),
        ("label\n1\n", "no column of values"),
        ("a,Label\n1,0\n", "no column 'label'.*--label Label"),
        ("a,b\n1\n", "line 2 has 1 columns"),
        ("a,b\n1,2\n1,x\n", "line 3, column b is 'x'"),
        ("a,b\n1,nan\n", "line 2, column b is 'nan'"),
        ("a,b\n1,1e999\n", "line 2, column b is '1e999'"),
        ("a,b\n1,1e39\n", "finite"),
        ("a,label\n1,run\n", "line 2, column label is 'run'.*--label-names"),
        ("a,label\n1,-7\n", "is -7, expected a class"),
        ("a,label\n1,1.5\n", "line 2, column label is '1.5'"),
        ("a,label\n1,.\n", "line 2, column label is '.'"),
        ("a,label\n1,inf\n", "line 2, column label is 'inf'"),
        ('a,b\n1,"2\n', "not a CSV file|columns"),
        ("a,b\n1,\x00\n", "CSV|finite"),
    ],
)
def test_bad_csv_is_named_and_adds_nothing(tmp_path: Path, text: str, message: str) -> None:
    path = put(tmp_path / "t.csv", text)
    with Store.open(tmp_path / "s.db") as store:
        with pytest.raises(FormatError, match=message) as caught:
            ingest(store, path)
        assert str(path) in str(caught.value)
        assert store.shape == () and not store.counts().unlabelled


def test_other_bad_files(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"a,b\n1,\xff\n")
    put(tmp_path / "x.json", "{}")
    put(tmp_path / "ok.csv", "a,b\n1,2\n")
    with Store.open(tmp_path / "s.db") as store:
        for name, message in (
            ("latin.csv", "UTF-8"),
            ("x.json", ".csv or .npz"),
            ("none.csv", "no such file"),
            ("none.npz", "no such file"),
        ):
            with pytest.raises(FormatError, match=message):
                ingest(store, tmp_path / name)
        with pytest.raises(FormatError, match="at most|more than"):
            ingest(store, tmp_path / "ok.csv", most_bytes=4)
        with pytest.raises(FormatError, match="no column 'zeit'"):
            ingest(store, tmp_path / "ok.csv", layout=CsvLayout(ignore=("zeit",)))
        with pytest.raises(FormatError, match="no column 'activity'; it has a, b"):
            ingest(store, tmp_path / "ok.csv", layout=CsvLayout(label="activity"))
        with pytest.raises(FormatError, match="do not fill"):
            ingest(store, tmp_path / "ok.csv", layout=CsvLayout(shape=(3, 3)))
        with pytest.raises(FormatError, match="less than one window"):
            ingest(store, tmp_path / "ok.csv", layout=CsvLayout(window=5))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 3))}, "expected 'inputs'"),
        ({"inputs": np.zeros((2, 3)), "y": np.zeros(2)}, "'y' is not known"),
        ({"inputs": np.zeros(3)}, "expected numbers"),
        ({"inputs": np.zeros((2, 0))}, "none empty"),
        ({"inputs": np.zeros((2, 3), complex)}, "complex128"),
        ({"inputs": np.array([[1, np.inf]])}, r"inputs\[0, 1\] is inf"),
        ({"inputs": np.full((1, 1), 1e300)}, "finite float32"),
        ({"inputs": np.zeros((2, 3)), "labels": np.zeros(3, int)}, r"labels is int64 \(3,\)"),
        ({"inputs": np.zeros((2, 3)), "labels": np.zeros(2)}, "float64"),
        ({"inputs": np.eye(2), "labels": np.array([0, 70_000])}, r"labels\[1\] is 70000"),
        ({"inputs": np.eye(2), "labels": np.array(["a", "b"])}, r"labels\[0\] is 'a'"),
        ({"inputs": np.array([[object()]], object)}, "Python objects, which are never loaded"),
    ],
)
def test_bad_npz_is_named_and_adds_nothing(
    tmp_path: Path, arrays: dict[str, NDArray[np.generic]], message: str
) -> None:
    np.savez(tmp_path / "t.npz", allow_pickle=True, **arrays)
    with Store.open(tmp_path / "s.db") as store:
        with pytest.raises(FormatError, match=message):
            ingest(store, tmp_path / "t.npz")
        assert store.shape == ()


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 30, 64)}
    )
    with zipfile.ZipFile(tmp_path / "t.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inputs.npy", header.getvalue() + bytes(1 << 20))
    with Store.open(tmp_path / "s.db") as store:
        with pytest.raises(FormatError, match="its header asks for"):
            ingest(store, tmp_path / "t.npz")
        np.savez_compressed(tmp_path / "b.npz", inputs=np.zeros((1 << 15, 64), np.float32))
        assert (tmp_path / "b.npz").stat().st_size < 100_000
        with pytest.raises(FormatError, match="unpacks to 8388608 bytes"):
            ingest(store, tmp_path / "b.npz", most_bytes=1 << 20)


@settings(max_examples=60, deadline=None, suppress_health_check=ONE_FOLDER)
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=8))
def test_a_damaged_npz_is_refused_or_read(tmp_path: Path, flips: list[tuple[float, int]]) -> None:
    np.savez(tmp_path / "t.npz", inputs=np.arange(12.0).reshape(3, 4), labels=np.arange(3))
    data = bytearray((tmp_path / "t.npz").read_bytes())
    for place, value in flips:
        data[int(place * (len(data) - 1))] ^= value
    (tmp_path / "t.npz").write_bytes(data)
    (tmp_path / "s.db").unlink(missing_ok=True)
    with Store.open(tmp_path / "s.db") as store:
        try:
            ingest(store, tmp_path / "t.npz")
        except PenstockError:
            assert not store.counts().labelled


@pytest.mark.parametrize("text", ["", "a,,b", "a,a", "1,2", "a, 3"])
def test_bad_label_names(text: str) -> None:
    with pytest.raises(FormatError, match="label names"):
        parse_label_names(text)


@pytest.mark.parametrize("text", ["", "9x", "0x3", "axb", "-1"])
def test_bad_shapes(text: str) -> None:
    with pytest.raises(UsageError, match="9x128"):
        parse_shape(text)
