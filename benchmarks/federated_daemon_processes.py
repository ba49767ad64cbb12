"""A federation of real processes on this machine: the server's command and a daemon per device.

Each device has samples of its own, drawn around one centre per class, so that the right model is
known and a training that works shows in the accuracy.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.federated.client.ingest import ingest
from penstock.federated.client.store import Store
from penstock.federated.daemon.config import load_config
from penstock.federated.daemon.identity import load_identity
from penstock.federated.report.records import JOURNAL, RoundRecord, read_records
from penstock.federated.server.certificates import make_certificates
from penstock.federated.server.processes import descendants, stop

FEATURES, CLASSES, PER_CLASS = 43, 6, 20
CLI = [sys.executable, "-m", "penstock.cli.main"]
# Children keep what they compile, as an installed Python does: without it each of them compiles
# Flower and torch anew, ten seconds of a core.
QUIET = {
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / f"penstock-bytecode-{os.getuid()}"),
}


def samples(seed: int, per_class: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inputs and labels of one device."""
    centres = np.random.default_rng(0).normal(0, 1, (CLASSES, FEATURES))
    rng = np.random.default_rng([1, seed])
    labels = np.repeat(np.arange(CLASSES), per_class)
    noise = rng.normal(0, 1, (len(labels), FEATURES))
    return (centres[labels] + noise).astype(np.float32), labels.astype(np.int64)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@dataclass
class Device:
    """One device: its folder, its configuration, its daemon."""

    name: str
    config: Path
    folder: Path
    port: int
    prefix: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    address: str = ""

    def start(self) -> None:
        """Start the daemon."""
        with open(self.folder / "daemon.out", "ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prefix,
                    *CLI,
                    "federated",
                    "client",
                    f"--superlink={self.address or f'127.0.0.1:{self.port}'}",
                    f"--config={self.config}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | QUIET,
                start_new_session=True,
            )

    def public_key(self, keys: Path) -> str:
        """Write the public key where the server looks; the device's identity."""
        identity = load_identity(load_config(self.config).folder)
        (keys / f"{self.name}.pub").write_bytes(identity.public_key.read_bytes())
        return identity.device

    def family(self) -> set[int]:
        """The daemon and all it started."""
        if self.process is None:
            return set()
        return {self.process.pid} | descendants(self.process.pid)

    def kill_all(self) -> None:
        """SIGKILL to every process of the device at once: as when the power is cut."""
        for pid in self.family():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def log(self) -> str:
        """What the daemon and its node said."""
        text = ""
        for path in (self.folder / "daemon.out", *sorted((self.folder / "state").glob("*.log"))):
            with suppress(OSError):
                text += path.read_text(errors="replace")
        return text


@dataclass
class Federation:
    """A server and devices in one folder; `close` ends all of them."""

    folder: Path
    ratios: Sequence[float]
    rounds: int = 3
    epochs: int = 2
    per_class: int = PER_CLASS
    deadline_s: float = 60.0
    least: int = 0
    daemon_options: str = ""
    server_prefix: Sequence[str] = ()
    devices: list[Device] = field(default_factory=list)
    identities: dict[str, str] = field(default_factory=dict)
    server: subprocess.Popen[bytes] | None = None
    widths: str = "[64, 32]"

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.run_folder, self.keys = self.folder / "run", self.folder / "keys"
        self.keys.mkdir(exist_ok=True)
        self.run_folder.mkdir(exist_ok=True)
        make_certificates(self.run_folder / "certificates", ["10.99.0.1"])
        inputs, labels = samples(999, 40)
        np.savez(self.folder / "public.npz", inputs=inputs, labels=labels)
        self.write_settings()
        for number, ratio in enumerate(self.ratios):
            self.devices.append(self.new_device(f"device{number}", number, ratio))
        for device in self.devices:
            self.identities[device.name] = device.public_key(self.keys)

    def write_settings(self, **changes: str) -> None:
        """The server's file; `changes` are lines of [devices] or [superlink]."""
        mix = {r: list(self.ratios).count(r) / len(self.ratios) for r in self.ratios}
        pairs = ", ".join(f"[{ratio}, {share!r}]" for ratio, share in mix.items())
        (self.folder / "server.toml").write_text(
            f"""
[run]
folder = "run"
rounds = {self.rounds}
[algorithm]
name = "heterofl"
[model]
name = "sensing-mlp"
input_shape = [{FEATURES}]
classes = {CLASSES}
widths = {self.widths}
[training]
epochs = {self.epochs}
[devices]
ratios = [{pairs}]
least = {self.least or len(self.ratios)}
deadline_s = {self.deadline_s}
wait_s = 120
query_s = 20
{changes.get("devices", "")}
[public]
file = "public.npz"
hold_out = 0.5
[superlink]
host = "{changes.get("host", "127.0.0.1")}"
port = {self.port}
node_keys = "keys"
"""
        )

    def new_device(self, name: str, seed: int, ratio: float) -> Device:
        """A device with samples; its key is not yet known to the server."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        config = folder / "device.toml"
        config.write_text(
            f"""
folder = "state"
[superlink]
certificates = "{self.run_folder / "certificates" / "ca.pem"}"
[training]
most_ratio = {ratio}
[conditions]
power = "ignore"
battery = "ignore"
unmetered = "ignore"
free_memory = "ignore"
[daemon]
poll_idle_s = 0.5
{self.daemon_options}
"""
        )
        inputs, labels = samples(seed, self.per_class)
        np.savez(folder / "windows.npz", inputs=inputs, labels=labels)
        settings = load_config(config)
        settings.folder.mkdir(exist_ok=True)
        with Store.open(settings.store) as store:
            ingest(store, folder / "windows.npz", label_names=tuple("abcdef"))
        return Device(name, config, folder, self.port)

    def start_server(self, *options: str) -> None:
        """Start the server's command."""
        with open(self.folder / "server.out", "ab") as log:
            self.server = subprocess.Popen(
                [
                    *self.server_prefix,
                    *CLI,
                    "federated",
                    "server",
                    f"--config={self.folder / 'server.toml'}",
                    "--json",
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | QUIET,
                start_new_session=True,
            )

    def start_devices(self) -> None:
        """Start all daemons."""
        for device in self.devices:
            device.start()

    def records(self) -> tuple[RoundRecord, ...]:
        """The journal so far."""
        path = self.run_folder / JOURNAL
        return read_records(path, lambda text: None) if path.exists() else ()

    def wait_for(self, what: str, met: Callable[[], bool], seconds: float) -> float:
        """Wait until something is so; seconds it took.

        Raises:
            RuntimeError: it is not in time, or the server ended; with what everybody said.
        """
        started = time.monotonic()
        while not met():
            ended = self.server is not None and self.server.poll() is not None
            if ended and met():
                break
            if ended or time.monotonic() - started > seconds:
                raise RuntimeError(f"{what}: not after {seconds:g} s.\n{self.story()}")
            time.sleep(0.05)
        return time.monotonic() - started

    def wait_for_round(self, number: int, seconds: float) -> float:
        """Wait for a round's record."""
        return self.wait_for(
            f"round {number}",
            lambda: any(r.round_number >= number for r in self.records()),
            seconds,
        )

    def finish(self, seconds: float) -> dict[str, Any]:
        """Wait for the server to end well; what it printed.

        Raises:
            RuntimeError: it failed, or not in time.
        """
        assert self.server is not None
        try:
            code = self.server.wait(seconds)
        except subprocess.TimeoutExpired:
            code = -1
        text = (self.folder / "server.out").read_text(errors="replace")
        if code:
            raise RuntimeError(f"the server ended with {code}.\n{self.story()}")
        found = json.loads(text[text.rindex("\n{") :])
        assert isinstance(found, dict)
        return found

    def story(self) -> str:
        """The ends of all logs, for an error."""
        parts = [("server", self.folder / "server.out")]
        parts += [("superlink", self.run_folder / "flower" / "superlink.log")]
        text = "".join(f"--- {d.name}\n{d.log()[-2000:]}\n" for d in self.devices)
        for name, path in parts:
            with suppress(OSError):
                text += f"--- {name}\n{path.read_text(errors='replace')[-3000:]}\n"
        return text

    def close(self) -> None:
        """End every process."""
        for device in self.devices:
            if device.process is not None:
                stop(device.process)
        if self.server is not None:
            stop(self.server)
