"""A federation of real processes on loopback: the server's command, SuperLink with TLS and node
keys, a daemon for each of three devices of three widths, and one whose key nobody registered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.federated_daemon_processes import Federation
from penstock.federated.server.checkpoint import read_newest
from tests.needs import needs

pytestmark = [
    pytest.mark.slow,
    needs("flwr", "torch", "safetensors"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Flower's, of click
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to end every process"),
]
PATIENCE_S = 600.0  # for a machine that others use; alone it takes 40 s


def test_three_devices_of_three_widths_learn_and_a_stranger_does_not(tmp_path: Path) -> None:
    federation = Federation(tmp_path, (1.0, 0.75, 0.5))
    stranger = federation.new_device("stranger", 9, 1.0)
    try:
        federation.start_server()
        federation.start_devices()
        stranger.start()
        federation.wait_for_round(1, PATIENCE_S)
        facts = federation.finish(PATIENCE_S)
    finally:
        federation.devices.append(stranger)
        federation.close()

    known = set(federation.identities.values())
    records = federation.records()
    assert facts["rounds"] == 3 and facts["restarts"] == 0
    assert [record.round_number for record in records] == [1, 2, 3]
    for record in records:
        assert set(record.devices) == known, federation.story()
        assert record.refused == {}
        assert record.examples == 3 * 120  # every sample of every device, once
        assert len({record.bytes_down[device] for device in known}) == 3
    accuracy = [record.global_accuracy for record in records]
    assert accuracy[-1] > 0.5 and accuracy[-1] > accuracy[0], accuracy
    newest = read_newest(federation.run_folder, print)
    assert newest is not None and newest.round_number == 3
    assert sorted(newest.ratios.values()) == [0.5, 0.75, 1.0]
    assert stranger.name not in federation.identities
    assert "refuses this device's key" in stranger.log(), stranger.log()


def test_certificates_and_errors_of_the_command(tmp_path: Path) -> None:
    settings = tmp_path / "server.toml"
    settings.write_text(
        '[run]\nfolder = "run"\n[model]\nname = "sensing-mlp"\ninput_shape = [4]\nclasses = 2\n'
    )

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "penstock.cli.main", "federated", "server"]
        return subprocess.run(
            [*line, f"--config={settings}", "--json", *words], capture_output=True, text=True
        )

    missing = command()
    assert missing.returncode == 2
    assert "--make-certificates" in json.loads(missing.stdout)["error"]["message"]
    made = command("--make-certificates", "fl.example.org, 192.168.1.5")
    assert made.returncode == 0, made.stderr
    folder = Path(json.loads(made.stdout)["certificates"])
    assert sorted(path.name for path in folder.iterdir()) == ["ca.pem", "server.key", "server.pem"]
    again = command("--make-certificates", "fl.example.org")
    assert again.returncode == 2 and "is there already" in again.stdout
