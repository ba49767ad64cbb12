"""Samples of a simulation: read with care, written device by device, mapped and copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.errors import FormatError, PenstockError, StorageError, UsageError
from penstock.federated.simulation.samples import (
    chunks_of_held,
    hold_out,
    open_shards,
    read_samples,
    write_shards,
)
from penstock.federated.training.data import TrainingData

INPUTS = np.arange(60, dtype=np.float32).reshape(20, 3)
LABELS = np.arange(20, dtype=np.int64) % 4


def npz(path: Path, **changed: object) -> Path:
    kept = {"inputs": INPUTS, "labels": LABELS} | changed
    arrays = {n: np.asarray(a) for n, a in kept.items() if a is not None}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_a_file_is_read_with_and_without_users(tmp_path: Path) -> None:
    found = read_samples(npz(tmp_path / "a.npz", inputs=INPUTS.astype(np.int32)))
    assert found.users is None and found.data.inputs.dtype == np.float32
    users = np.arange(20) // 5
    with_users = read_samples(npz(tmp_path / "b.npz", users=users))
    assert with_users.users is not None and np.array_equal(with_users.users, users)
    some = with_users.subset(np.array([3, 9])).users
    assert some is not None and some.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": None}, "lacks 'labels'"),
        ({"labels": np.arange(19)}, "20 inputs but 19 labels"),
        ({"labels": LABELS.astype(float)}, "labels are float64"),
        ({"labels": LABELS - 3}, "a label is -3"),
        ({"inputs": INPUTS * np.nan}, "expected finite values"),
        ({"inputs": np.array(["x"] * 20)}, "inputs are <U1"),
        ({"inputs": np.array([object()] * 20)}, "not an npz of plain arrays"),
        ({"users": np.arange(3)}, r"users have shape \(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, object], said: str) -> None:
    path = npz(tmp_path / "bad.npz", **arrays)
    with pytest.raises(PenstockError, match=said) as caught:
        read_samples(path)
    assert str(path) in str(caught.value)


def test_a_foreign_or_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(FormatError, match="x.npz"):
        read_samples(tmp_path / "x.npz")
    with pytest.raises(StorageError, match="cannot be read"):
        read_samples(tmp_path / "none.npz")


def test_shards_give_back_each_devices_samples_by_chunk(tmp_path: Path) -> None:
    parts = (
        np.array([1, 4, 9, 11, 19]),
        np.array([0, 2]),
        np.setdiff1d(np.arange(20), [0, 1, 2, 4, 9, 11, 19]),
    )
    data = TrainingData(INPUTS, LABELS)
    write_shards(tmp_path, data, parts, chunks=2)
    shards = open_shards(tmp_path)
    assert shards.devices == 3
    for index, part in enumerate(parts):
        for chunk, piece in enumerate(np.array_split(part, 2)):
            found = shards.device(index, chunk)
            assert np.array_equal(found.inputs, INPUTS[piece])
            assert np.array_equal(found.labels, LABELS[piece])
            assert not isinstance(found.inputs, np.memmap)
        assert shards.counts(index) == (len(part), 0)
    assert np.array_equal(shards.device(0, 7).labels, shards.device(0, 1).labels)


def test_labels_are_hidden_but_one_a_chunk(tmp_path: Path) -> None:
    parts = (np.arange(10), np.arange(10, 20))
    shards = write_shards(
        tmp_path, TrainingData(INPUTS, LABELS), parts, chunks=2, labelled=0.05, seed=3
    )
    for index in range(2):
        assert shards.counts(index) == (2, 8)
        for chunk in range(2):
            found = shards.device(index, chunk)
            kept = found.labelled
            assert len(kept) == 1
            assert found.labels[kept[0]] == LABELS[int(found.inputs[kept[0], 0]) // 3]


def test_the_hold_out_is_disjoint_labelled_and_seeded() -> None:
    labels = np.where(np.arange(20) < 5, -1, LABELS)
    data = TrainingData(INPUTS, labels)
    rest, test = hold_out(data, 0.2, seed=1)
    assert len(test) == 3 and len(rest) == 17 and (labels[test] >= 0).all()
    assert sorted([*rest, *test]) == list(range(20))
    again, _ = hold_out(data, 0.2, seed=1)
    assert np.array_equal(again, rest)
    none = hold_out(data, 0.0, seed=1)
    assert len(none[0]) == 20 and not len(none[1])
    with pytest.raises(UsageError, match="a part is empty"):
        hold_out(data, 0.01, 1)


def test_a_held_sample_is_of_the_chunk_that_it_would_have_had() -> None:
    # two users, one after the other; each one's time is cut in two
    users = np.repeat([0, 1], 10)
    held = np.array([2, 8, 9, 10, 15, 19])
    kept = np.setdiff1d(np.arange(20), held)
    parts = (np.flatnonzero(users[kept] == 0), np.flatnonzero(users[kept] == 1))
    assert chunks_of_held(kept, held, parts, 2, users).tolist() == [0, 1, 1, 0, 0, 1]
    # without users 10 would follow the first user's last sample
    assert chunks_of_held(kept, held, parts, 2, None).tolist() == [0, 1, 1, 1, 0, 1]
    assert not chunks_of_held(kept, held, parts, 1, users).any()
    one_device = (np.arange(len(kept)),)  # a user that is held out whole has no other neighbour
    users[19] = 2
    assert chunks_of_held(kept, held, one_device, 2, users)[-1] == 1


def test_too_many_chunks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device 1 has 2 samples for 3 chunks"):
        write_shards(
            tmp_path, TrainingData(INPUTS, LABELS), (np.arange(18), np.arange(18, 20)), chunks=3
        )
