"""What is done to a federation of real processes, and what is checked afterwards.

After every fault: the run ends; every round is in the journal once; no device counts twice in a
round, and what counts is each device's samples, once; no sample is gone from a device's store.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.federated_daemon_processes import CLASSES, PER_CLASS, Device, Federation
from benchmarks.federated_daemon_sabotage import (
    control_status,
    damage,
    fill,
    namespace,
    set_link,
    settle,
    small_disks,
)
from benchmarks.federated_daemon_stock import Stock
from penstock.federated.arrays import digest
from penstock.federated.client.store import Store
from penstock.federated.daemon.config import load_config
from penstock.federated.server.checkpoint import read_newest
from penstock.federated.server.processes import descendants

PATIENCE_S = 900.0
LONG = 300  # epochs that last some seconds, so that a fault meets a training
SAMPLES = CLASSES * PER_CLASS
LATE_ROUNDS = 2  # at most, that a device may miss while it starts
PAGE_SAMPLES = 20  # at most on one page of a store; a page that is damaged takes its own with it


@dataclass(frozen=True)
class Fault:
    """One row: what happened, ours in words, the bars that were missed, the figures."""

    name: str
    ours: str
    stock: str
    missed: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


def check(
    federation: Federation, rounds: int, undisturbed: Sequence[Device] = (), may_lose: int = 0
) -> list[str]:
    """What is wrong with a run that ended; empty: nothing.

    Args:
        undisturbed: devices whose update must count in every round from their first on; a run
            that needs fewer than all may begin without one that starts more slowly.
        may_lose: samples that a device's store may lack.
    """
    wrong = []
    records = federation.records()
    numbers = [record.round_number for record in records]
    if numbers != list(range(1, rounds + 1)):
        wrong.append(f"the journal has rounds {numbers}")
    known = set(federation.identities.values())
    for record in records:
        if len(set(record.devices)) != len(record.devices) or not set(record.devices) <= known:
            wrong.append(f"round {record.round_number} counts {record.devices}")
        if record.examples != SAMPLES * len(record.devices):
            wrong.append(f"round {record.round_number} counts {record.examples} examples")
    for device in undisturbed:
        counted = [federation.identities[device.name] in record.devices for record in records]
        first = min(counted.index(True), LATE_ROUNDS) if any(counted) else 0
        wrong += [
            f"round {record.round_number} lacks {device.name}, which nothing hurt"
            for record, counts in zip(records[first:], counted[first:], strict=True)
            if not counts
        ]
    for device in federation.devices:
        settings = load_config(device.config)
        with Store.open(settings.store) as store:
            found = store.counts().labelled
        if not SAMPLES - may_lose <= found <= SAMPLES:
            wrong.append(f"{device.name} has {found} of {SAMPLES} samples")
    return wrong


def client_killed(folder: Path) -> Fault:
    """SIGKILL to all of a device's processes in training; it is started again at once."""
    rounds = 8
    federation = Federation(folder, (1.0, 0.75, 0.5), rounds=rounds, epochs=LONG, least=2)
    with running(federation):
        victim = federation.devices[0]
        in_training(federation, victim, after_round=1)
        victim.kill_all()
        killed, before = time.monotonic(), len(federation.records())
        victim.start()
        federation.wait_for_round(before + 1, PATIENCE_S)
        next_s = time.monotonic() - killed
        name = federation.identities[victim.name]

        def back() -> bool:
            return any(name in r.devices for r in federation.records()[before + 1 :])

        back_s = federation.wait_for("the device is back", back, PATIENCE_S) + next_s
        federation.finish(PATIENCE_S)
    counted = sum(name in record.devices for record in federation.records())
    return Fault(
        "client killed (-9) in training, started again",
        f"round ended {next_s:.0f} s after the kill, device counts again {back_s:.0f} s after it "
        f"({counted} of {rounds} rounds)",
        "",
        check(federation, rounds, federation.devices[1:]),
        {"next_round_s": next_s, "back_s": back_s},
    )


def server_killed(folder: Path) -> Fault:
    """SIGKILL to SuperLink, which the server starts again; then to the server, which is resumed;
    then the same federation undisturbed, which must give the same bits."""
    rounds = 5
    federation = Federation(folder, (1.0, 0.75, 0.5), rounds=rounds, epochs=LONG)
    with running(federation):
        in_training(federation, federation.devices[0], after_round=1)
        before = len(federation.records())
        os.kill(superlink_pid(federation), signal.SIGKILL)
        link_s = federation.wait_for_round(before + 1, PATIENCE_S)
        in_training(federation, federation.devices[0], after_round=before + 1)
        assert federation.server is not None
        before = len(federation.records())
        federation.server.kill()
        federation.server.wait()
        federation.start_server("--resume")
        server_s = federation.wait_for_round(before + 1, PATIENCE_S)
        facts = federation.finish(PATIENCE_S)
    missed = check(federation, rounds, federation.devices)
    disturbed = read_newest(federation.run_folder, print)
    for path in federation.run_folder.glob("*"):
        if path.name != "certificates":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with running(federation):
        federation.finish(PATIENCE_S)
    calm = read_newest(federation.run_folder, print)
    assert disturbed is not None and calm is not None
    same = digest(disturbed.state) == digest(calm.state)
    if not same:
        missed.append("the resumed run's model differs from an undisturbed run's")
    return Fault(
        "SuperLink killed (-9), then the server (-9) with --resume",
        f"next round {link_s:.0f} s after SuperLink's death, {server_s:.0f} s after the server's; "
        f"{facts['rounds']} rounds; final model {'equal bit by bit to' if same else 'unlike'} an "
        "undisturbed run's",
        "",
        missed,
        {"after_superlink_s": link_s, "after_server_s": server_s},
    )


def network_cut(folder: Path) -> Fault:
    """A device in a network namespace of its own; its link is down for twenty seconds."""
    rounds = 8
    with namespace() as enter:
        federation = Federation(
            folder, (1.0, 0.75, 0.5), rounds=rounds, epochs=LONG, least=2, deadline_s=30.0
        )
        federation.write_settings(host="0.0.0.0")
        victim = federation.devices[0]
        victim.prefix, victim.address = enter, f"10.99.0.1:{federation.port}"
        name = federation.identities[victim.name]
        with running(federation):
            in_training(federation, victim, after_round=1)
            refused = control_status(enter, federation)
            before = len(federation.records())
            set_link("down")
            cut = time.monotonic()
            time.sleep(20)
            set_link("up")
            federation.wait_for(
                "the device is back",
                lambda: (
                    any(name in r.devices for r in federation.records()[before:])
                    and time.monotonic() - cut > 20
                ),
                PATIENCE_S,
            )
            back_s = time.monotonic() - cut
            federation.finish(PATIENCE_S)
    missed = check(federation, rounds, federation.devices[1:])
    if refused != 403:
        missed.append(f"Control answered {refused} to another machine, expected 403")
    return Fault(
        "network of a device cut for 20 s in training",
        f"other devices' rounds went on; the device counts again {back_s:.0f} s after the cut; "
        f"Control from the other namespace: {refused}",
        "",
        missed,
        {"back_s": back_s},
    )


def disk_full(folder: Path) -> Fault:
    """The server's folder and a device's are small disks that fill up, and are free again."""
    rounds = 6
    small = [folder / "run", folder / "device0" / "state"]
    with small_disks(small):
        federation = Federation(folder, (1.0, 0.75, 0.5), rounds=rounds, epochs=LONG, least=2)
        with running(federation):
            for path in small:
                in_training(
                    federation, federation.devices[0], after_round=len(federation.records())
                )
                fill(path / "filler")
                time.sleep(25)
                (path / "filler").unlink()
            federation.finish(PATIENCE_S)
        missed = check(federation, rounds)
        said = server_said(federation)
        refused = sum(len(record.refused) for record in federation.records())
    noticed = "StorageError" in said
    if not noticed:
        missed.append("the server did not say that its disk was full")
    return Fault(
        "disk full for 25 s: the server's, then a device's",
        f"server {'said so and went on' if noticed else 'wrote nothing meanwhile'}; device refused "
        f"or late in {refused} cases; {rounds} rounds",
        "",
        missed,
    )


def database_corrupt(folder: Path) -> Fault:
    """The newest checkpoint, a device's store and SuperLink's database are damaged at rest."""
    rounds = 4
    federation = Federation(folder, (1.0, 0.75, 0.5), rounds=rounds, epochs=2)
    settings = (folder / "server.toml").read_text()
    (folder / "server.toml").write_text(settings + "database = true\n")
    with running(federation):
        federation.wait_for_round(2, PATIENCE_S)
    newest = max(federation.run_folder.glob("round-*.safetensors"))
    damage(newest)
    settle(federation.run_folder / "flower" / "superlink.db")
    damage(federation.run_folder / "flower" / "superlink.db", at=100)
    store = load_config(federation.devices[0].config).store
    damage(store)
    with running(federation, "--resume"):
        federation.finish(PATIENCE_S)
    missed = check(federation, rounds, may_lose=PAGE_SAMPLES)
    said = server_said(federation)
    for words in ("falling back to the round before", "a new one begins"):
        if words not in said:
            missed.append(f"the server did not say {words!r}")
    aside = len(list(store.parent.glob("*corrupt*")))
    if not aside:
        missed.append("no damaged store was moved aside")
    with Store.open(store) as opened:
        found = opened.counts().labelled
    return Fault(
        "checkpoint, SuperLink's database and a device's store damaged at rest",
        f"fell back one round; new SuperLink database; store moved aside, {found} of {SAMPLES} "
        "samples taken over",
        "",
        missed,
        {"samples": found},
    )


FAULTS: dict[str, Callable[[Path], Fault]] = {
    "client": client_killed,
    "server": server_killed,
    "network": network_cut,
    "disk": disk_full,
    "corrupt": database_corrupt,
}


# ---------------------------------------------------------------- stock Flower, the first two


def stock_client_killed(folder: Path) -> str:
    """The same to a stock SuperNode."""
    flower = Stock(folder, nodes=3, rounds=4, epochs=LONG)
    try:
        flower.start_superlink()
        nodes = [flower.start_supernode(number) for number in range(3)]
        flower.run()
        _until(lambda: len(flower.rounds()) >= 1)
        _until(lambda: any("clientapp" in _words(pid) for pid in flower.family(nodes[0])))
        for pid in flower.family(nodes[0]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        nodes[0].wait()
        killed, before = time.time(), len(flower.rounds())
        flower.start_supernode(0)
        _until(lambda: len(flower.rounds()) > before)
        seconds = flower.rounds()[before][0] - killed
        good = flower.rounds()[before][2]
        return f"round ended {seconds:.0f} s after the kill with {good} of 3 updates"
    finally:
        flower.close()


def stock_server_killed(folder: Path) -> str:
    """The same to a stock SuperLink with a database."""
    flower = Stock(folder, nodes=3, rounds=4, epochs=LONG)
    try:
        flower.start_superlink()
        for number in range(3):
            flower.start_supernode(number)
        run = flower.run()
        _until(lambda: len(flower.rounds()) >= 1)
        assert flower.superlink is not None
        done = len(flower.rounds())
        flower.superlink.kill()
        flower.superlink.wait()
        flower.start_superlink()
        _until(lambda: flower.status(run).startswith("finished"), pause=5.0)
        return f"run {flower.status(run)} after {done} of 4 rounds; nothing to resume"
    finally:
        flower.close()


STOCK = {"client": stock_client_killed, "server": stock_server_killed}


# ---------------------------------------------------------------- how it is done


@contextmanager
def running(federation: Federation, *options: str) -> Iterator[None]:
    """Server and devices, ended at the end."""
    try:
        federation.start_server(*options)
        federation.start_devices()
        yield
    finally:
        federation.close()


def in_training(federation: Federation, device: Device, after_round: int) -> None:
    """Wait until a device trains, in a round after this one."""
    if after_round:
        federation.wait_for_round(after_round, PATIENCE_S)
    status = device.folder / "state" / "status.json"

    def trains() -> bool:
        with suppress(OSError):
            return '"training"' in status.read_text()
        return False

    federation.wait_for(f"{device.name} trains", trains, PATIENCE_S)
    time.sleep(0.5)


def server_said(federation: Federation) -> str:
    """The command's words, and the run's, which go into SuperLink's log."""
    text = ""
    for path in (
        federation.folder / "server.out",
        federation.run_folder / "flower" / "superlink.log",
    ):
        with suppress(OSError):
            text += path.read_text(errors="replace")
    return text


def superlink_pid(federation: Federation) -> int:
    """Of the SuperLink that the server started."""
    assert federation.server is not None
    for pid in descendants(federation.server.pid):
        if "superlink_process" in _words(pid):
            return pid
    raise RuntimeError("the server has no SuperLink")


def _words(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _until(met: Callable[[], bool], pause: float = 0.05) -> None:
    until = time.monotonic() + PATIENCE_S
    while not met():
        if time.monotonic() > until:
            raise RuntimeError(f"not within {PATIENCE_S:g} s")
        time.sleep(pause)
