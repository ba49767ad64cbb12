"""`penstock federated ingest` and `client`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from penstock.cli.main import main


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "device.toml"
    path.write_text('folder = "device"\n[superlink]\naddress = "h:1"\n')
    return str(path)


def test_ingest(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    csv = tmp_path / "monday.csv"
    csv.write_text("time,ax,ay,label\n" + "".join(f"{i},{i},{-i},walk\n" for i in range(8)))
    arguments = ["federated", "ingest", str(csv), "--config", config, "--json"]
    options = ["--window", "4", "--ignore", "time", "--label-names", "walk,sit"]
    assert main([*arguments, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"][0]["added"] == {"new": 2, "labelled": 0, "known": 0, "evicted": 0}
    assert found["files"][0]["shape"] == [2, 4] and found["store"]["labelled"] == 2

    np.savez(tmp_path / "t.npz", inputs=np.zeros((1, 3)))
    assert main(["federated", "ingest", str(tmp_path / "t.npz"), "--config", config]) == 2
    assert "the windows have shape (3,)" in capsys.readouterr().err
    csv.write_text("time,ax,ay,label\n1,x,2,walk\n")
    assert main([*arguments, *options]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "FormatError" and "line 2, column ax is 'x'" in error["message"]


def test_status_and_key(tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography")
    assert main(["federated", "client", "--config", config, "--key"]) == 0
    assert capsys.readouterr().out.startswith("ecdsa-sha2-nistp384 ")
    assert main(["federated", "client", "--config", config, "--status", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["running"] is False and found["phase"] == "not running"
    assert main(["federated", "client", "--config", config, "--status"]) == 1
    assert "not running" in capsys.readouterr().out


def test_bad_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["federated", "client", "--config", str(tmp_path / "none.toml")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    path = tmp_path / "device.toml"
    path.write_text('folder = "d"\n')
    assert main(["federated", "client", "--config", str(path)]) == 2
    assert "which SuperLink" in capsys.readouterr().err
    assert main(["federated", "client", "--config", str(path), "--superlink", "nohost"]) == 2
    assert "expected host:port" in capsys.readouterr().err
