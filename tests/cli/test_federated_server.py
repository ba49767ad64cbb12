"""`penstock federated server`: what it leaves behind, with rounds that are only played.

Real rounds over SuperLink are in tests/federated/test_end_to_end.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import UsageError
from penstock.federated.report.records import JOURNAL, RoundRecord, append_record
from penstock.federated.server import serve as serve_module
from penstock.federated.server.outcome import Outcome
from penstock.federated.server.serve import only_one
from tests.cli.conftest import Cli

SETTINGS = """
[run]
folder = "run"
rounds = 2
[model]
name = "sensing-mlp"
input_shape = [4]
classes = 2
[superlink]
insecure = true
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(SETTINGS)
    return path


def play(monkeypatch: pytest.MonkeyPatch, folder: Path, error: BaseException | None = None) -> None:
    def watch(*_: Any) -> tuple[Outcome, int]:
        for number in (1, 2):
            record = RoundRecord("b" * 16, number, 0, "fedavg", ("d",), global_accuracy=0.5)
            append_record(folder / JOURNAL, record)
        if error is not None:
            raise error
        return Outcome("a", "b" * 16, 2), 0

    monkeypatch.setattr(serve_module, "_watch", watch)


def test_a_run_leaves_its_report(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tmp_path / "run")
    result = cli("federated", "server", "--config", config, "--json")
    assert result.code == 0 and result.json["global_accuracy"] == 0.5
    assert Path(result.json["page"]).read_text().startswith("<!DOCTYPE html>")
    written = json.loads(Path(result.json["report"]).read_text())
    assert cli("federated", "report", tmp_path / "run", "--json").json == written


def test_so_does_one_that_ends_by_an_error(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tmp_path / "run", UsageError("the privacy budget is spent"))
    result = cli("federated", "server", "--config", config)
    assert result.code == 2 and "privacy budget is spent" in result.err
    assert (tmp_path / "run" / "report.html").is_file()


def test_and_one_that_is_stopped_which_says_how_to_go_on(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tmp_path / "run", KeyboardInterrupt())
    result = cli("federated", "server", "--config", config)
    assert result.code == 130
    said = result.err.splitlines()
    assert said[1].startswith("round 2 of 2: ") and said[2] == "stopping; resume with --resume"
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_second_server_leaves_the_folder_as_it_is(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    append_record(folder / JOURNAL, RoundRecord("c" * 16, 1, 0, "fedavg", ("d",)))
    play(monkeypatch, folder)
    with only_one(folder / "server.lock"):
        result = cli("federated", "server", "--config", config, "--resume")
    assert result.code == 2 and "another process uses this folder" in result.err
    assert sorted(path.name for path in folder.iterdir()) == [JOURNAL, "server.lock"]


def test_what_does_not_fit_is_wrong_usage_and_leaves_nothing(
    cli: Cli, config: Path, tmp_path: Path
) -> None:
    config.write_text(SETTINGS + '[public]\nfile = "none.npz"\n')
    result = cli("federated", "server", "--config", config)
    assert result.code == 2 and "public.file" in result.err and "none.npz" in result.err
    assert not (tmp_path / "run").exists()


def test_without_tls_beyond_this_machine_is_told(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tmp_path / "run")
    assert "unencrypted" not in cli("federated", "server", "--config", config).err
    config.write_text(SETTINGS + 'host = "0.0.0.0"\n')
    result = cli("federated", "server", "--config", config)
    assert result.code == 0
    [line] = [line for line in result.err.splitlines() if "unencrypted" in line]
    assert "0.0.0.0" in line
