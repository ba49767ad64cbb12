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
from penstock.federated.server.serve import Served
from tests.cli.conftest import Cli

SETTINGS = """
[run]
folder = "run"
rounds = 2
[model]
name = "sensing-mlp"
input_shape = [4]
classes = 2
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(SETTINGS)
    return path


def play(monkeypatch: pytest.MonkeyPatch, folder: Path, error: Exception | None = None) -> None:
    def serve(*_: Any, **__: Any) -> Served:
        folder.mkdir()
        for number in (1, 2):
            record = RoundRecord("b" * 16, number, 0, "fedavg", ("d",), global_accuracy=0.5)
            append_record(folder / JOURNAL, record)
        if error is not None:
            raise error
        return Served(Outcome("a", "b" * 16, 2), 0)

    monkeypatch.setattr(serve_module, "serve", serve)


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
