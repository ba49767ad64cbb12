"""Key, lock, log, status, health endpoint and pipes: each by itself."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.errors import FormatError, UsageError
from penstock.federated.daemon.health import HealthServer
from penstock.federated.daemon.identity import load_identity
from penstock.federated.daemon.lease import Lease
from penstock.federated.daemon.lock import end_left_over, holder, one_process
from penstock.federated.daemon.log import log_to
from penstock.federated.daemon.pipes import LineReader, Reporter, Stop
from penstock.federated.daemon.status import StatusBoard, read_status


def test_a_key_is_made_once_and_is_the_owners(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    one, two = load_identity(tmp_path / "d"), load_identity(tmp_path / "d")
    assert one.device == two.device and len(one.device) == 16
    assert stat.S_IMODE(one.private_key.stat().st_mode) == 0o600
    assert one.private_key.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert one.public_key.read_text().startswith("ecdsa-sha2-nistp384 ")
    assert load_identity(tmp_path / "other").device != one.device


def test_openssh_reads_the_key(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    identity = load_identity(tmp_path)
    try:
        done = subprocess.run(
            ["ssh-keygen", "-y", "-f", str(identity.private_key)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    assert done.stdout.split()[:2] == identity.public_key.read_text().split()[:2]


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_key_is_not_replaced(tmp_path: Path, text: str) -> None:
    pytest.importorskip("cryptography")
    (tmp_path / "node_key").write_text(text)
    with pytest.raises(FormatError, match="not a key"):
        load_identity(tmp_path)
    assert (tmp_path / "node_key").read_text() == text


def test_the_public_key_is_the_keys(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    identity = load_identity(tmp_path)
    line = identity.public_key.read_text()
    identity.public_key.write_text(load_identity(tmp_path / "other").public_key.read_text())
    load_identity(tmp_path)
    assert identity.public_key.read_text() == line
    named = " ".join([*line.split()[:2], "the pump in hall 3\n"])
    identity.public_key.write_text(named)
    load_identity(tmp_path)
    assert identity.public_key.read_text() == named, "the owner's comment stays"


def test_a_lost_key_is_not_replaced(tmp_path: Path) -> None:
    """The registered key would be another one than the device's."""
    pytest.importorskip("cryptography")
    identity = load_identity(tmp_path)
    identity.private_key.unlink()
    with pytest.raises(FormatError, match="is gone, while .*node_key.pub is there"):
        load_identity(tmp_path)
    identity.public_key.unlink()
    assert load_identity(tmp_path).device != identity.device


# ---------------------------------------------------------------- lease


def test_a_lease_outlives_its_process(tmp_path: Path) -> None:
    fleet: Any = SimpleNamespace(node_id=(1 << 64) - 5, heartbeat=lambda: None)
    mark, stop = tmp_path / "heartbeat", Stop()
    assert Lease(fleet, mark, 15.0, stop).number() == 0
    lease = Lease(fleet, mark, 15.0, stop)
    lease.begin()
    lease.end()
    after = Lease(fleet, mark, 15.0, stop)
    assert after.number() == fleet.node_id and 20 < after.remaining() <= 32
    now = time.time()
    os.utime(mark, (now - 40, now - 40))
    assert after.number() == 0 and after.remaining() == 0, "it has run out"
    os.utime(mark, (now + 9e5, now + 9e5))
    assert after.number() == fleet.node_id, "the clock was set back"
    mark.write_text("")
    assert after.number() == 0


# ---------------------------------------------------------------- lock

HOLD = """
import signal, sys, time
from pathlib import Path
from penstock.federated.daemon.lock import one_process
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with one_process(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "x.lock"), "deaf"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_process_is_refused_until_the_first_is_gone(
    tmp_path: Path, held: subprocess.Popen[str]
) -> None:
    path = tmp_path / "x.lock"
    assert holder(path) == held.pid
    with pytest.raises(UsageError, match=f"process {held.pid}"):
        with one_process(path):
            pass
    held.kill()
    held.wait()
    with one_process(path):
        assert holder(path) == os.getpid()
    assert holder(path) is None


def test_who_looks_at_a_lock_keeps_nobody_out(tmp_path: Path) -> None:
    """`--status` has it for an instant, which a daemon that starts may meet."""
    path = tmp_path / "x.lock"
    path.touch()
    with open(path, "r+") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert holder(path) is None, "another look is no process either"
        threading.Timer(0.1, fcntl.flock, (looking.fileno(), fcntl.LOCK_UN)).start()
        with one_process(path):
            assert holder(path) == os.getpid()


def test_what_was_left_behind_is_ended(
    tmp_path: Path, held: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.federated.daemon.lock.PATIENCE_S", 0.3)
    assert end_left_over(tmp_path / "x.lock")
    assert held.wait(5) == -signal.SIGKILL
    assert not end_left_over(tmp_path / "x.lock")


# ---------------------------------------------------------------- log, status, health


def test_logs_are_json_lines_and_bounded(tmp_path: Path) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        log_to(tmp_path / "n.log", 10_000)
        for number in range(500):
            logging.getLogger("penstock.federated.daemon.node").info("line %d\nwith two", number)
        try:
            raise ValueError("x" * 900)
        except ValueError:
            logging.getLogger().exception("fault")
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
            handler.close()
        root.handlers[:] = before
        root.setLevel(level)
    files = sorted(tmp_path.glob("n.log*"))
    assert len(files) == 3 and all(f.stat().st_size < 20_000 for f in files)
    lines = [json.loads(line) for line in (tmp_path / "n.log").read_text().splitlines()]
    assert lines[-1]["text"] == "fault" and "ValueError" in lines[-1]["trace"]
    assert lines[0]["from"] == "daemon.node" and lines[0]["level"] == "info"


def test_status_is_written_when_the_phase_changes(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {"running": False, "phase": "not running"}
    board = StatusBoard(tmp_path, silent_s=0.2)
    board.heard(phase="waiting", node_pid=7)
    assert json.loads((tmp_path / "status.json").read_text())["phase"] == "waiting"
    with one_process(tmp_path / "daemon.lock"):
        assert read_status(tmp_path)["phase"] == "waiting"
    assert read_status(tmp_path)["phase"] == "not running"
    assert board.facts()["healthy"]
    time.sleep(0.3)
    assert not board.facts()["healthy"], "it fell silent"
    board.heard(phase="waiting", standing="sits out")
    assert not board.facts()["healthy"], "its work does not count"
    board.heard(standing="not now")
    assert board.facts()["healthy"], "it waits for power"
    board.heard(phase="offline")
    assert not board.facts()["healthy"]
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(FormatError, match="damaged"):
        read_status(tmp_path)


def get(url: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_health_endpoint() -> None:
    facts: dict[str, object] = {"phase": "waiting", "healthy": True}
    server = HealthServer(0, lambda: facts)
    try:
        assert get(server.address + "/health") == (200, {"healthy": True, "phase": "waiting"})
        assert get(server.address + "/status") == (200, facts)
        facts = {"phase": "waiting", "healthy": False, "standing": "refused", "node": "7"}
        facts |= {"standing_reason": "NaN", "standing_since": "2026-01-01T00:00:00Z"}
        said = {name: value for name, value in facts.items() if name != "node"}
        assert get(server.address + "/health") == (503, said)
        facts = {"phase": "offline", "healthy": False}
        assert get(server.address + "/health")[0] == 503
        assert get(server.address + "/etc/passwd")[0] == 404
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(UsageError, match=f"health_port {port}"):
            HealthServer(port, lambda: facts)
    finally:
        server.close()


# ---------------------------------------------------------------- pipes


def test_lines_come_whole(tmp_path: Path) -> None:
    end, start = os.pipe()
    reader, report = LineReader(end), Reporter(start)
    report.beat("waiting")
    report.beat("waiting")  # too soon, and nothing new
    report.beat("train", message="m")
    found = [json.loads(line) for line in reader.lines()]
    assert found == [{"phase": "waiting"}, {"phase": "train", "message": "m"}]
    os.write(start, b"half")
    assert reader.lines() == [] and not reader.ended
    os.write(start, b" a line\nand")
    assert reader.lines() == ["half a line"]
    os.close(start)
    assert reader.lines() == [] and reader.ended
    os.close(end)


def test_a_reporter_nobody_reads_does_not_block() -> None:
    end, start = os.pipe()
    report = Reporter(start)
    for number in range(20_000):
        report.beat(f"phase {number}")
    os.close(end)
    report.beat("after the end")
    os.close(start)


def test_stop_wakes_at_once_and_by_the_lifeline() -> None:
    stop = Stop()
    threading.Timer(0.1, stop.ask).start()
    began = time.monotonic()
    assert stop.wait(30) and time.monotonic() - began < 10
    assert stop.asked() and stop.wait(30)
    end, start = os.pipe()
    tied = Stop(end)
    assert not tied.asked() and not tied.wait(0.01)
    os.close(start)
    assert tied.asked()
    os.close(end)
