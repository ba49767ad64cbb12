"""Checkpoints: back as they were, or refused; never half-read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import FormatError, PenstockError, StorageError
from penstock.federated.arrays import Arrays
from penstock.federated.server.checkpoint import (
    Checkpoint,
    newest_round,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)

STATE: Arrays = {
    "global/a": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not in C order
    "global/count": np.array(3, np.int64),
    "filters/empty": np.zeros((0, 3), np.float32),
    "weights": np.array([1.5, -2.0]),
}


def checkpoint(number: int = 5) -> Checkpoint:
    return Checkpoint(
        run="00ff00ff00ff00ff",
        round_number=number,
        algorithm="heterofl",
        model="{}",
        seed=3,
        ratios={"d0": 0.5, "gerät": 1.0},
        seen={"d0": 5, "gerät": 2},
        record='{"format":1}',
        ledger="",
        state=STATE,
    )


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    found = read_checkpoint(write_checkpoint(tmp_path, checkpoint()))
    assert (found.run, found.ratios, found.seed) == ("00ff00ff00ff00ff", checkpoint().ratios, 3)
    assert (found.record, found.seen) == (checkpoint().record, checkpoint().seen)
    assert set(found.state) == set(STATE)
    for name, array in STATE.items():
        assert found.state[name].shape == array.shape and found.state[name].dtype == array.dtype
        np.testing.assert_array_equal(found.state[name], array)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_checkpoint(tmp_path_factory.mktemp("whole"), checkpoint()).read_bytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(where: float, bit: int, whole: bytes, tmp_path: Path) -> None:
    data = bytearray(whole)
    data[int(where * len(data))] ^= 1 << bit
    path = tmp_path / "round-000005.safetensors"
    path.write_bytes(data)
    try:
        found = read_checkpoint(path)
    except FormatError:
        return
    # What remains possible is a change that is none: a letter of the header's padding or key order.
    assert found.ratios == checkpoint().ratios and found.run == checkpoint().run
    for name, array in STATE.items():
        np.testing.assert_array_equal(found.state[name], array)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_found(where: float, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "round-000005.safetensors"
    path.write_bytes(whole[: int(where * len(whole))])
    with pytest.raises(FormatError):
        read_checkpoint(path)


def test_the_newest_whole_one_is_taken_and_the_damaged_is_named(tmp_path: Path) -> None:
    for number in (8, 9, 10):
        write_checkpoint(tmp_path, checkpoint(number))
    (tmp_path / "round-000010.safetensors").write_bytes(b"")
    (tmp_path / "round-000011.safetensors").mkdir()  # unreadable, of whatever kind
    notes: list[str] = []
    found = read_newest(tmp_path, notes.append)
    assert found is not None and found.round_number == 9
    assert newest_round(tmp_path) == 11  # a round that ended, whatever became of its file
    assert [("000011" in n, "000010" in n) for n in notes] == [(True, False), (False, True)]


def test_all_damaged_is_an_error_and_none_is_none(tmp_path: Path) -> None:
    assert read_newest(tmp_path, print) is None and newest_round(tmp_path) == -1
    assert read_newest(tmp_path / "nowhere", print) is None
    (tmp_path / "round-000001.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(FormatError, match="all 1 checkpoints are damaged"):
        read_newest(tmp_path, lambda text: None)


def test_a_full_disk_leaves_the_earlier_ones(tmp_path: Path) -> None:
    import resource

    write_checkpoint(tmp_path, checkpoint(1))
    before = sorted(os.listdir(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            write_checkpoint(tmp_path, checkpoint(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(os.listdir(tmp_path)) == before
    assert read_checkpoint(tmp_path / before[0]).round_number == 1


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "round-000001.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(PenstockError, match="not a whole checkpoint"):
        read_checkpoint(path)
