"""The daemon as a user runs it, against a real SuperLink: crash, hang, restart, leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.federated.arrays import Arrays, check_arrays
from penstock.federated.client.journal import Journal
from penstock.federated.client.memory import resident_bytes
from penstock.federated.client.store import Store
from penstock.federated.daemon.lock import NODE_LOCK, holder
from penstock.federated.daemon.status import read_status
from penstock.federated.models.registry import ModelOptions, model_spec
from penstock.federated.protocol import Capabilities, Notice, TrainResult, TrainTask
from tests.federated.daemon.superlink import COMPILED, Hand, SuperLink

pytest.importorskip("flwr")
pytest.importorskip("torch")

MODEL = ModelOptions("sensing-mlp", (6,), 3, (8,))
# The most that a device trains; with one window a step the tests never see the end.
LONG = 10_000
CONFIG = """
folder = "device"
[superlink]
insecure = true
heartbeat_s = {heartbeat_s}
[training]
most_seconds = {most_seconds}
[conditions]
power = "ignore"
battery = "ignore"
unmetered = "ignore"
free_memory = "ignore"
[daemon]
poll_idle_s = 0.3
hang_s = {hang_s}
"""


class Device:
    """A daemon process and its folder."""

    def __init__(
        self,
        folder: Path,
        address: str,
        hang_s: float = 60,
        most_seconds: float = 3600,
        heartbeat_s: float = 10,
    ) -> None:
        self.home = folder / "device"
        self.config = folder / "device.toml"
        self.config.write_text(
            CONFIG.format(hang_s=hang_s, most_seconds=most_seconds, heartbeat_s=heartbeat_s)
        )
        self.address = address
        rng = np.random.default_rng(0)
        with Store.open(self.home / "store.db") as store:
            store.add(rng.normal(size=(40, 6)).astype(np.float32), np.arange(40) % 3)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "penstock.cli.main", "federated", "client"]
        self.process = subprocess.Popen(
            [*command, "--config", str(self.config), "--superlink", self.address],
            stderr=subprocess.DEVNULL,
            env=os.environ | COMPILED,
        )

    def wait_for(
        self, what: Callable[[dict[str, Any]], bool], seconds: float = 60
    ) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while not what(facts := read_status(self.home)):
            assert time.monotonic() < until, facts
            assert self.process.poll() is None, "the daemon ended"
            time.sleep(0.05)
        return facts

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()


def arrays_of(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        tensor.name: np.zeros(tensor.shape, np.int64)
        if tensor.kind == "counter"
        else np.abs(rng.normal(0, 0.3, tensor.shape)).astype(np.float32)
        for tensor in model_spec(MODEL)
    }


def task(number: int, epochs: int = 2, seconds: float = 0.0) -> TrainTask:
    batch = 1 if epochs == LONG else 8
    return TrainTask(
        "e" * 16, number, 0, "fedavg", MODEL.to_json(), 1.0, "{}", epochs, batch, 0.01, 5, seconds
    )


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def wait_until(what: Callable[[], bool], seconds: float, why: str) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, why
        time.sleep(0.05)


@pytest.mark.slow
def test_a_life(tmp_path: Path, superlink: SuperLink, hand: Hand) -> None:
    """Joins, says what it can, trains warm, survives kill -9 in training, and leaves cleanly."""
    device = Device(tmp_path, superlink.address)
    try:
        run = hand.begin_run()
        (node,) = hand.wait_for_nodes(run)
        plain, _ = hand.answer(run, hand.ask(run, node, "query", None))
        said = Capabilities.from_record(plain, "device")
        assert said.ready and said.labelled == 40

        plain, arrays = hand.answer(run, hand.ask(run, node, "train", task(1), arrays_of()))
        result = TrainResult.from_record(plain, "device")
        assert not result.refused and result.device == said.device and result.steps == 10
        check_arrays(arrays, model_spec(MODEL).by_name(), "device")
        before = read_status(device.home)["node_pid"]
        began = time.monotonic()
        plain, _ = hand.answer(run, hand.ask(run, node, "train", task(2), arrays_of()))
        assert read_status(device.home)["node_pid"] == before, "the process stays warm"
        assert time.monotonic() - began < 20

        facts = json.load(urllib.request.urlopen(read_status(device.home)["health"] + "/status"))
        assert facts["healthy"] and facts["device"] == said.device

        # What only the server knows is shown where a person or a probe looks.
        said_why = Notice(refused="a value\nis not finite")
        hand.answer(run, hand.ask(run, node, "query", said_why))
        device.wait_for(lambda facts: facts.get("standing") == "refused")
        with pytest.raises(urllib.error.HTTPError, match="503") as unwell:
            urllib.request.urlopen(read_status(device.home)["health"] + "/health")
        assert json.load(unwell.value)["standing_reason"] == "a value is not finite"
        hand.answer(run, hand.ask(run, node, "query", None))  # of a server that knows nothing yet
        facts = device.wait_for(lambda facts: facts.get("phase") == "waiting")
        assert facts["standing"] == "refused"
        hand.answer(run, hand.ask(run, node, "query", Notice()))
        device.wait_for(lambda facts: facts.get("standing") == "takes part")

        # What is not a message of ours is answered by an error or a refusal, and the node lives on.
        strange = hand.reply(run, hand.ask(run, node, "train.special", None, arrays_of()))
        assert strange.has_error() and read_status(device.home)["node_pid"] == before
        plain, _ = hand.answer(run, hand.ask(run, node, "train", said, arrays_of()))
        assert "Capabilities" in plain["refused"] or "TrainTask" in plain["refused"]
        device.wait_for(lambda facts: facts.get("standing") == "sits out")

        # A crash in training: the message is worked on again by the next process, once.
        message = hand.ask(run, node, "train", task(3, epochs=LONG), arrays_of())
        device.wait_for(lambda facts: facts.get("phase") == "training")
        with Store.open(device.home / "store.db") as store:
            (entry,) = Journal(store.database).open_messages()
        assert entry.state == "held" and entry.confirmed
        os.kill(before, signal.SIGKILL)
        seen = device.wait_for(lambda facts: facts.get("restarts") == 1 and facts["node_pid"])
        assert seen["node_pid"] != before and not alive(before)
        seen = device.wait_for(lambda facts: facts.get("phase") == "training", 90)
        assert hand.nodes(run) == {node}, "the same node, by its key"
        assert seen["attempt"] == 2

        # SIGTERM in training: leaves within seconds, and keeps the message for the next start.
        device.process.send_signal(signal.SIGTERM)
        assert device.process.wait(30) == 0
        assert not alive(seen["node_pid"])
        assert hand.nodes(run) == set(), "it has told the server"
        assert read_status(device.home)["phase"] == "not running"
        with Store.open(device.home / "store.db") as store:
            (entry,) = Journal(store.database).open_messages()
            assert (entry.state, entry.attempts) == ("held", 1), "this one does not count"
            assert store.counts().labelled == 40
            # As if the process had ended by it three times: it is given up, and the server told.
            with store.database.writing() as db:
                db.execute("UPDATE messages SET attempts = 3")
        device.start()
        hand.wait_for_nodes(run)
        error = hand.reply(run, message).error
        assert "ended 3 times" in error.reason
    finally:
        device.stop()


@pytest.mark.slow
def test_kill_9_in_training_loses_no_update(
    tmp_path: Path, superlink: SuperLink, hand: Hand
) -> None:
    """A run asks for the reply all the time; were the device offline once, it would be given up."""
    device = Device(tmp_path, superlink.address)
    try:
        run = hand.begin_run()
        (node,) = hand.wait_for_nodes(run)
        began = time.time()
        message = hand.ask(run, node, "train", task(1, LONG, seconds=45), arrays_of())
        facts = device.wait_for(lambda facts: facts.get("phase") == "training")
        os.kill(facts["node_pid"], signal.SIGKILL)
        plain, arrays = hand.answer(run, message, 90)
        result = TrainResult.from_record(plain, "device")
        assert result.steps and not result.refused and arrays is not None
        assert time.time() - began < 52, "the round's time counts from its beginning"
        assert result.stopped and result.seconds < 40
        assert device.wait_for(lambda facts: facts.get("phase") == "waiting")["restarts"] == 1
        with Store.open(device.home / "store.db") as store:
            assert Journal(store.database).outcomes() == {"sent": 1}
    finally:
        device.stop()


@pytest.mark.slow
def test_a_hang_is_ended_and_given_up(tmp_path: Path, superlink: SuperLink, hand: Hand) -> None:
    device = Device(tmp_path, superlink.address, hang_s=15)
    try:
        run = hand.begin_run()
        first = device.wait_for(lambda facts: facts.get("phase") == "waiting")["node_pid"]
        os.kill(first, signal.SIGSTOP)
        facts = device.wait_for(lambda facts: facts.get("restarts") == 1 and facts["node_pid"], 60)
        assert facts["node_pid"] != first and not alive(first)
        assert "the node hangs" in device.log("daemon")

        # kill -9 of the daemon itself: the node sees it and leaves, so no orphan stays.
        device.wait_for(lambda facts: facts.get("phase") == "waiting", 60)
        node = holder(device.home / NODE_LOCK)
        assert node is not None and node == facts["node_pid"]
        device.process.kill()
        device.process.wait()
        wait_until(lambda: holder(device.home / NODE_LOCK) is None, 30, "an orphan stays")
        wait_until(lambda: hand.nodes(run) == set(), 30, "it did not tell the server")
        device.start()
        (again,) = hand.wait_for_nodes(run)
        assert again
    finally:
        device.stop()


@pytest.mark.slow
def test_the_server_goes_and_comes_back(tmp_path: Path, hand: Hand, superlink: SuperLink) -> None:
    """A reply that is ready waits for the server; two daemons do not share a folder."""
    device = Device(tmp_path, superlink.address, most_seconds=4, heartbeat_s=60)
    try:
        run = hand.begin_run()
        (node,) = hand.wait_for_nodes(run)
        message = hand.ask(run, node, "train", task(1, epochs=LONG), arrays_of())
        device.wait_for(lambda facts: facts.get("phase") == "training")
        superlink.kill()
        facts = device.wait_for(lambda facts: facts.get("phase") == "offline", 60)
        assert "Error" in facts["reason"]
        with Store.open(device.home / "store.db") as store:
            (entry,) = Journal(store.database).open_messages()
        assert entry.state == "answered"

        second = subprocess.run(
            [sys.executable, "-m", "penstock.cli.main", "federated", "client"]
            + ["--config", str(device.config), "--superlink", device.address],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 2 and "a daemon runs on this folder" in second.stderr

        superlink.start()
        plain, arrays = hand.answer(run, message)
        result = TrainResult.from_record(plain, "device")
        assert result.stopped and not result.refused and arrays is not None
        device.wait_for(lambda facts: facts.get("phase") == "waiting")
        with Store.open(device.home / "store.db") as store:
            assert Journal(store.database).outcomes() == {"sent": 1}
        node_pid = read_status(device.home)["node_pid"]
        assert resident_bytes(device.process.pid) < 60 << 20 < resident_bytes(node_pid)
    finally:
        device.stop()
