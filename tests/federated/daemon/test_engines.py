"""What the supervisor starts, and the app that Flower's own SuperNode would load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.errors import UsageError
from penstock.federated.daemon.config import load_config
from penstock.federated.daemon.engines import StockSuperNode, WarmNode, choose_engine
from tests.federated.daemon.superlink import COMPILED

pytest.importorskip("flwr")


def put(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "device.toml"
    path.write_text(text)
    return path


def test_which_superlink(tmp_path: Path) -> None:
    path = put(tmp_path, "")
    with pytest.raises(UsageError, match="which SuperLink"):
        choose_engine(load_config(path), path, None)


def test_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, '[superlink]\naddress = "h:1"\n[training]\nthreads = 3\n')
    engine = choose_engine(load_config(path), path, "other:2")
    assert isinstance(engine, WarmNode) and engine.waits() == ""
    command = engine.command(7, 8)
    assert command[-2:] == ["--superlink", "other:2"] and "7" in command and str(path) in command
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED", raising=False)
    environment = engine.environment()
    assert environment["OMP_NUM_THREADS"] == "3" and environment["FLWR_TELEMETRY_ENABLED"] == "0"
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    assert "FLWR_TELEMETRY_ENABLED" not in engine.environment(), "the user may switch it on"


def test_the_stock_supernode(tmp_path: Path) -> None:
    text = '[superlink]\naddress = "h:1"\ncertificates = "ca.crt"\n[daemon]\nengine = "supernode"\n'
    path = put(tmp_path, text + "[conditions]\npower = false\n")
    config = load_config(path)
    engine = choose_engine(config, path, None)
    assert isinstance(engine, StockSuperNode) and not engine.reports
    command = engine.command(7, 8)
    assert command[command.index("--root-certificates") + 1] == str(tmp_path / "ca.crt")
    key = Path(command[command.index("--auth-supernode-private-key") + 1])
    assert key.read_bytes().startswith(b"-----BEGIN OPENSSH")
    assert engine.waits() == "it runs on battery", "it runs only while the conditions hold"


def test_the_app_of_a_fab_finds_its_device(tmp_path: Path) -> None:
    path = put(tmp_path, 'folder = "d"\n[training]\nmost_ratio = 0.5\n')
    code = (
        "from penstock.federated.client.supernode_app import app, participant\n"
        "print(type(app).__name__, participant().capabilities().most_ratio)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | COMPILED | {"PENSTOCK_FEDERATED_CONFIG": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "ClientApp 0.5\n", done.stderr
