"""The journal: what is written is read back, torn ends are survived, damage is named."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from penstock.errors import FormatError, StorageError
from penstock.federated.report.records import RoundRecord, append_record, read_records


def record(number: int, **more: object) -> RoundRecord:
    fields = {"run": "a" * 16, "round_number": number, "chunk": 0, "algorithm": "fedavg"}
    return RoundRecord(**(fields | {"devices": ("d1", "d2")} | more))  # type: ignore[arg-type]


FULL = record(
    1,
    refused={"d3": 'no "update": größer\nzweite Zeile'},
    loss=0.1 + 0.2,
    bytes_up={"d1": 4096},
    device_seconds={"d1": 1.5},
    figures={"chunk_macro_f1/0": 0.5},
)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_record(path, FULL)
    append_record(path, record(2))
    assert read_records(path) == (FULL, record(2))
    assert path.read_bytes().count(b"\n") == 2


def test_a_number_that_is_not_finite_is_null_and_comes_back_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_record(path, record(1, loss=math.inf))
    assert json.loads(path.read_text())["loss"] is None
    assert math.isnan(read_records(path)[0].loss)


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_last_line_is_left_out_with_a_note_and_cut_off_by_the_next(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "rounds.jsonl"
    append_record(path, FULL)
    append_record(path, record(2))
    os.truncate(path, path.stat().st_size - cut)
    notes: list[str] = []
    assert read_records(path, notes.append) == (FULL,)
    assert len(notes) == 1 and "line 2 is torn" in notes[0]
    append_record(path, record(2))
    assert read_records(path, notes.append) == (FULL, record(2)) and len(notes) == 1


def test_a_torn_only_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(b"x" * 200_000)
    append_record(path, FULL)
    assert read_records(path) == (FULL,)


def test_a_round_that_was_written_twice_counts_once_and_the_last_time(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    for entry in (record(1), record(2, loss=1.0), record(2, loss=2.0)):
        append_record(path, entry)
    assert [r.loss for r in read_records(path)] == [-1.0, 2.0]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: d.pop("chunk"), "field 'chunk' is missing"),
        (lambda d: d.update(extra=1), "field 'extra' is unknown"),
        (lambda d: d.update(round_number="1"), "field 'round_number' is '1', expected int"),
        (lambda d: d.update(round_number=True), "expected int"),
        (lambda d: d.update(devices="d1"), "field 'devices' is 'd1'"),
        (lambda d: d.update(bytes_up={"d1": 0.5}), "field 'bytes_up.d1' is 0.5"),
        (lambda d: d.update(format=2), "not a round of format 1"),
    ],
)
def test_damage_names_line_and_field(tmp_path: Path, damage: object, said: str) -> None:
    path = tmp_path / "rounds.jsonl"
    append_record(path, record(1))
    line = json.loads(record(2).to_json())
    damage(line)  # type: ignore[operator]
    path.write_text(path.read_text() + json.dumps(line) + "\n" + record(3).to_json() + "\n")
    with pytest.raises(FormatError) as caught:
        read_records(path)
    assert f"{path}, line 2" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("line", [b"{torn", b"[]", b'"x"', b"\xff\xfe"])
def test_a_foreign_line_in_the_middle_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(line + b"\n" + FULL.to_json().encode() + b"\n")
    with pytest.raises(FormatError, match="line 1"):
        read_records(path)


def test_a_full_device_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rounds.jsonl"
    append_record(path, FULL)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penstock.federated.report.records.os.fsync", full)
    with pytest.raises(StorageError, match="round 2 cannot be written: No space"):
        append_record(path, record(2))
    assert path.read_bytes() == FULL.to_json().encode() + b"\n"


def test_a_journal_from_before_widths_were_kept_is_read(tmp_path: Path) -> None:
    line = json.loads(record(1, ratios={"d1": 0.5}).to_json())
    assert line.pop("ratios") == {"d1": 0.5}
    path = tmp_path / "rounds.jsonl"
    path.write_text(json.dumps(line) + "\n")
    assert read_records(path) == (record(1),)


def test_no_journal_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="give the folder of a federated run"):
        read_records(tmp_path / "none")
