"""What Flower's process is asked to do: whatever goes wrong, the watcher hears of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import UsageError
from penstock.federated.server.grid_fleet import GridFleet
from penstock.federated.server.keyed_fleet import KeyedFleet
from penstock.federated.server.outcome import read_outcome
from penstock.federated.server.progress import Progress
from penstock.federated.server.settings import parse_settings

pytest.importorskip("flwr", reason="the app is Flower's")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Flower's, of click


class Grid:
    """That lists one node."""

    def get_nodes(self) -> list[Any]:
        from flwr.proto.node_pb2 import NodeInfo

        return [NodeInfo(node_id=7, public_key=b"a key")]


def test_settings_that_cannot_be_read_any_more_are_told(tmp_path: Path) -> None:
    from penstock.federated.server.server_app import run_on_grid

    settings = tmp_path / "server.toml"
    settings.write_text("[run]\nfolder = 7\n[model]\n")
    grid: Any = Grid()
    with pytest.raises(UsageError, match=r"run\.folder is 7"):
        run_on_grid(grid, settings, tmp_path, resume=True, attempt="ab12")
    outcome = read_outcome(tmp_path, "ab12")
    assert outcome is not None and outcome.error == "UsageError" and not outcome.again
    assert "run.folder is 7" in outcome.message


def test_keys_are_looked_at_where_superlink_checks_them(tmp_path: Path) -> None:
    from penstock.federated.server.server_app import _fleet

    tables = {
        "run": {"folder": "run"},
        "model": {"name": "sensing-mlp", "input_shape": [4], "classes": 2},
    }
    settings = parse_settings(tables, tmp_path)
    grid: Any = Grid()
    fleet = _fleet(grid, settings)
    assert isinstance(fleet, KeyedFleet) and isinstance(fleet.fleet, GridFleet)
    assert fleet.keys() == {7: b"a key"}
    insecure = replace(settings.superlink, insecure=True)
    assert isinstance(_fleet(grid, replace(settings, superlink=insecure)), GridFleet)


def test_what_the_run_tells_reaches_the_watcher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from penstock.federated.server.server_app import tell

    told: list[str] = []
    progress = Progress(tmp_path, 2, told.append)
    tell(tmp_path, "0 of 1 devices are ready; waiting")
    progress.look()
    assert told == ["0 of 1 devices are ready; waiting"]
    assert capsys.readouterr().out == "penstock: 0 of 1 devices are ready; waiting\n"
