"""What a run tells while it goes on: its notes, and each round once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.federated.report.records import JOURNAL, RoundRecord, append_record
from penstock.federated.server import progress as progress_module
from penstock.federated.server.progress import NOTES, Progress, append_note

FIRST = RoundRecord(
    "a" * 16, 1, 0, "fedavg", ("d1",), {"d2": "late"}, global_accuracy=0.5, global_macro_f1=0.25,
    bytes_down={"d1": 8, "d2": 8}, server_seconds=0.5,
)  # fmt: skip


def test_each_round_and_note_is_told_once(tmp_path: Path) -> None:
    append_note(tmp_path, "of the run before")
    append_record(tmp_path / JOURNAL, replace(FIRST, round_number=7))
    told: list[str] = []
    times = iter([100.0, 112.5, 115.5])
    progress = Progress(tmp_path, 3, told.append, lambda: next(times))
    progress.look()
    assert told == []
    append_note(tmp_path, "1 of 2 devices are ready; waiting")
    append_record(tmp_path / JOURNAL, FIRST)
    progress.look()
    progress.look()
    assert told == [
        "1 of 2 devices are ready; waiting",
        "round 1 of 3: 1 of 2 devices counted, accuracy 50.0 %, macro-F1 25.0 %, 12.5 s",
    ]
    append_record(tmp_path / JOURNAL, replace(FIRST, accuracy=0.75, macro_f1=0.5))
    append_record(
        tmp_path / JOURNAL,
        replace(FIRST, round_number=2, global_accuracy=-1.0, global_macro_f1=-1.0),
    )
    append_record(tmp_path / JOURNAL, replace(FIRST, round_number=2))  # no device measured
    progress.look()
    assert told[2:] == [
        "round 1, on the devices' own data: accuracy 75.0 %, macro-F1 50.0 %",
        "round 2 of 3: 1 of 2 devices counted, 3.0 s",
    ]


def test_a_torn_or_damaged_line_is_no_round(tmp_path: Path) -> None:
    told: list[str] = []
    progress = Progress(tmp_path, 3, told.append)
    journal = tmp_path / JOURNAL
    line = FIRST.to_json().encode()
    journal.write_bytes(b"{}\n" + line[:50])
    progress.look()
    assert told == []
    journal.write_bytes(b"{}\n" + line + b"\n")
    progress.look()
    assert len(told) == 1 and told[0].startswith("round 1 of 3")


def test_a_note_is_one_line_that_steers_no_terminal(tmp_path: Path) -> None:
    told: list[str] = []
    progress = Progress(tmp_path, 3, told.append)
    append_note(tmp_path, "a reason\nround 9 of 3\x1b[2J\u2028größer")
    progress.look()
    assert told == ["a reason round 9 of 3 [2J größer"]
    append_note(tmp_path, "x" * 100_000)
    progress.look()
    assert told[1:] == ["x" * 4000]
    append_note(tmp_path / "nowhere", "nobody hears it")
    assert (tmp_path / NOTES).is_file()


def test_the_notes_of_a_long_run_stay_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "MOST_NOTES", 100)
    told: list[str] = []
    progress = Progress(tmp_path, 3, told.append)
    for number in range(50):
        append_note(tmp_path, f"{number:03} of fifty")
        progress.look()
        assert (tmp_path / NOTES).stat().st_size < 200
    assert told == [f"{number:03} of fifty" for number in range(50)]
