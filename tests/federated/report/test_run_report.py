"""The report that a run leaves behind: both files whole, also after an error, never a half one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.errors import PenstockError, StorageError, UsageError
from penstock.federated.report.records import JOURNAL, RoundRecord, append_record
from penstock.federated.report.run_report import REPORT_JSON, REPORT_PAGE, report_at_end
from penstock.federated.report.summary import summarise_folder


def do_rounds(folder: Path, count: int) -> None:
    for number in range(1, count + 1):
        record = RoundRecord("a" * 16, number, 0, "fedavg", ("d",), loss=float("nan"))
        append_record(folder / JOURNAL, record)


def test_both_files_say_what_the_journal_says(tmp_path: Path) -> None:
    with report_at_end(tmp_path, print):
        do_rounds(tmp_path, 3)
    found = json.loads((tmp_path / REPORT_JSON).read_text())
    assert found == summarise_folder(tmp_path).to_dict() and len(found["rounds"]) == 3
    page = (tmp_path / REPORT_PAGE).read_text()
    assert page.startswith("<!DOCTYPE html>") and "http" not in page.replace(
        "http://www.w3.org", ""
    )
    with report_at_end(tmp_path, print):  # resumed
        do_rounds(tmp_path, 5)
    assert len(json.loads((tmp_path / REPORT_JSON).read_text())["rounds"]) == 5


def test_a_run_that_ends_by_an_error_leaves_one_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), report_at_end(tmp_path, print):
        do_rounds(tmp_path, 2)
        raise KeyboardInterrupt
    assert len(json.loads((tmp_path / REPORT_JSON).read_text())["rounds"]) == 2


def test_an_error_before_the_first_round_stays_the_only_one(tmp_path: Path) -> None:
    notes: list[str] = []
    with pytest.raises(UsageError, match="no"), report_at_end(tmp_path / "run", notes.append):
        raise UsageError("no")
    assert not (tmp_path / "run").exists() and notes == []


def test_what_stands_in_its_way_is_told(tmp_path: Path) -> None:
    (tmp_path / REPORT_JSON).mkdir()
    with pytest.raises(StorageError, match=REPORT_JSON), report_at_end(tmp_path, print):
        do_rounds(tmp_path, 1)
    notes: list[str] = []
    with pytest.raises(PenstockError, match="mine"), report_at_end(tmp_path, notes.append):
        raise PenstockError("mine")
    assert len(notes) == 1 and "no report was written" in notes[0]
