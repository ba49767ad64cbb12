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
    assert found["files"][0]["added"] == {
        "new": 2,
        "labelled": 0,
        "known": 0,
        "evicted": 0,
        "relabelled": 0,
    }
    assert found["files"][0]["shape"] == [2, 4] and found["store"]["labelled"] == 2

    np.savez(tmp_path / "t.npz", inputs=np.zeros((1, 3)))
    assert main(["federated", "ingest", str(tmp_path / "t.npz"), "--config", config]) == 2
    assert "the windows have shape (3,)" in capsys.readouterr().err
    csv.write_text("time,ax,ay,label\n1,x,2,walk\n")
    assert main([*arguments, *options]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "FormatError" and "line 2, column ax is 'x'" in error["message"]


def test_a_wrong_label_is_repaired_and_windows_are_deleted(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    csv, other = tmp_path / "a.csv", tmp_path / "b.csv"
    csv.write_text("x,y,label\n1,2,walk\n3,4,sit\n5,6,\n")
    options = ["--config", config, "--json"]
    names = ["--label-names", "walk,sit"]
    assert main(["federated", "ingest", str(csv), *names, *options]) == 0
    csv.write_text("x,y,label\n1,2,sit\n3,4,sit\n5,6,\n")
    capsys.readouterr()
    assert main(["federated", "ingest", str(csv), *options]) == 2
    assert "--relabel takes the new one" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["federated", "ingest", str(csv), "--relabel", "--config", config]) == 0
    assert "1 got another label, 2 were there" in capsys.readouterr().err

    other.write_text("x,y\n3,4\n9,9\n")
    assert main(["federated", "forget", str(other), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["deleted"]["labelled"] == 1 and found["store"]["labelled"] == 1
    assert main(["federated", "forget", "--with-label", "sit", "--config", config]) == 0
    assert "Deleted 1 labelled and 0 unlabelled windows" in capsys.readouterr().err
    assert main(["federated", "forget", "--config", config]) == 2
    assert "say which windows" in capsys.readouterr().err
    assert main(["federated", "forget", "--with-label", "run", "--config", config]) == 2
    assert "expected one of walk, sit" in capsys.readouterr().err
    other.write_text("x,y,z\n3,4,5\n")
    assert main(["federated", "ingest", str(other), *options]) == 2
    assert "forget --all" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["federated", "forget", str(other), "--config", config]) == 2
    assert "have shape (3,), those in the store (2,)" in capsys.readouterr().err
    assert main(["federated", "forget", "--all", *options]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"]["emptied"] is True
    assert main(["federated", "ingest", str(other), *options]) == 0, "of another shape"


def test_forget_deletes_by_content_and_never_by_an_accident_of_labels(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    csv, npz = tmp_path / "a.csv", tmp_path / "b.npz"
    csv.write_text("x,y,label\n1,2,walk\n3,4,sit\n5,6,\n7,8,\n")
    options = ["--config", config, "--json"]
    assert main(["federated", "ingest", str(csv), "--label-names", "walk,sit", *options]) == 0
    csv.write_text("x,y,label\n1,2,run\n9,9,-0.5\n")  # names that the store does not know
    np.savez(npz, inputs=np.array([[5.0, 6.0]]), labels=np.array([99]))
    capsys.readouterr()
    assert main(["federated", "forget", str(csv), str(npz), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["deleted"]["labelled"], found["deleted"]["unlabelled"]) == (1, 1)
    assert main(["federated", "forget", "--with-label", "-7", *options]) == 2
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "the label is '-7', expected one of walk, sit, or a number from 0 on" in message
    assert main(["federated", "forget", "--with-label", "-1", *options]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"]["unlabelled"] == 1


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
    path.write_text('folder = "d"\n[superlink]\naddress = "h:1"\ncertificates = "ca.pem"\n')
    command = ["federated", "client", "--config", str(path)]
    assert main(command) == 1, "it may come back: systemd tries 1 again, but not 2"
    missing = (
        f"{path}: [superlink] certificates: {tmp_path / 'ca.pem'} cannot be read: No such file"
    )
    assert missing in capsys.readouterr().err
    (tmp_path / "ca.pem").write_text("none")
    assert main(command) == 2
    assert "ca.pem holds no certificate in PEM" in capsys.readouterr().err
    assert main([*command, "--status"]) == 1, "needs none"
