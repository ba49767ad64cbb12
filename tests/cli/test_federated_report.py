"""`penstock federated report` on a journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.federated.report.records import JOURNAL, RoundRecord, append_record
from tests.cli.conftest import Cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        append_record(
            tmp_path / JOURNAL,
            RoundRecord(
                "c" * 16, number, 0, "heterofl", ("d1",), {"d2": "late"}, loss=0.5,
                global_accuracy=0.25 * number, global_macro_f1=0.2, bytes_up={"d1": 2048},
                ratios={"d1": 1.0 if number == 1 else 0.625, "d2": 0.5},
            ),
        )  # fmt: skip
    return tmp_path


def test_tables_for_people(cli: Cli, folder: Path) -> None:
    result = cli("federated", "report", folder)
    assert result.code == 0
    assert "heterofl, 3 rounds" in result.out and "75.0 %" in result.out
    assert "1, 0.625" in result.out and "last 10" not in result.out


def test_a_device_s_name_steers_no_terminal(cli: Cli, tmp_path: Path) -> None:
    record = RoundRecord("c" * 16, 1, 0, "fedavg", ("d1\x1b[2J\x9b2J\u202e",))
    append_record(tmp_path / JOURNAL, record)
    result = cli("federated", "report", tmp_path)
    assert result.code == 0 and "d1 [2J 2J" in result.out
    assert not set("\x1b\x9b\u202e") & set(result.out)


def test_a_table_that_was_cut_says_so(cli: Cli, tmp_path: Path) -> None:
    for number in range(1, 26):
        devices = tuple(f"d{i:02}" for i in range(12))
        append_record(tmp_path / JOURNAL, RoundRecord("c" * 16, number, 0, "fedavg", devices))
    result = cli("federated", "report", tmp_path)
    assert result.code == 0 and "last 10 of 25 rounds" in result.out
    assert "The 10 of 12 devices with most traffic" in result.out and "d11" not in result.out


def test_json_for_machines_and_a_page_beside_it(cli: Cli, folder: Path) -> None:
    page = folder / "run.html"
    result = cli("federated", "report", folder, "--html", page, "--json")
    assert result.code == 0
    assert result.json["final_accuracy"] == 0.75
    assert result.json["devices"][1]["reasons"] == {"late": 3}
    assert [device["ratios"] for device in result.json["devices"]] == [[1.0, 0.625], [0.5]]
    assert page.read_text().startswith("<!DOCTYPE html>") and "1, 0.625" in page.read_text()


def test_a_torn_line_is_noted_and_a_damaged_one_refused(cli: Cli, folder: Path) -> None:
    path = folder / JOURNAL
    path.write_bytes(path.read_bytes()[:-5])
    result = cli("federated", "report", folder, "--json")
    assert result.code == 0 and len(result.json["rounds"]) == 2
    assert "line 3 is torn" in result.err
    path.write_text("{}\n" + path.read_text())
    result = cli("federated", "report", folder, "--json")
    assert result.code == 1 and result.json["error"]["code"] == "FormatError"
    assert "line 1" in result.json["error"]["message"]


def test_a_folder_without_a_run(cli: Cli, tmp_path: Path) -> None:
    result = cli("federated", "report", tmp_path)
    assert result.code == 1 and "give the folder of a federated run" in result.err
