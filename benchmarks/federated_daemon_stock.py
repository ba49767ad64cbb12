"""Stock Flower beside ours: flower-superlink, flower-supernode and FedAvg as its tutorials have
them, training the same model on as many samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.federated_daemon_processes import CLASSES, FEATURES, PER_CLASS, QUIET, free_port
from penstock.federated.server.processes import descendants, stop

PROJECT = """
[project]
name = "stock"
version = "1.0.0"
license = "Apache-2.0"
description = "FedAvg"
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "stock_app.server:app"
clientapp = "stock_app.client:app"
[tool.flwr.app.config]
rounds = {rounds}
nodes = {nodes}
epochs = {epochs}
times = "{times}"
"""
SERVER = """
import time
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from stock_app.task import model

app = ServerApp()

class Timed(FedAvg):
    path = ""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        good = sum(not reply.has_error() for reply in replies)
        with open(self.path, "a") as file:
            file.write(f"{time.time()} {server_round} {good}\\n")
        return super().aggregate_train(server_round, [r for r in replies if not r.has_error()])

@app.main()
def main(grid, context):
    nodes = context.run_config["nodes"]
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=nodes)
    strategy.path = context.run_config["times"]
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model().state_dict()),
        num_rounds=context.run_config["rounds"],
    )
"""
CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from stock_app.task import data, model

app = ClientApp()

@app.train()
def train(message, context):
    torch.set_num_threads(1)
    net = model()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    inputs, labels = data(context.node_config["partition-id"])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(context.run_config["epochs"]):
        for i in range(0, len(labels), 32):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(inputs[i:i+32]), labels[i:i+32])
            loss.backward()
            optimizer.step()
    content = {
        "arrays": ArrayRecord(net.state_dict()),
        "metrics": MetricRecord({"num-examples": len(labels), "loss": float(loss)}),
    }
    return Message(RecordDict(content), reply_to=message)
"""
TASK = f"""
import torch

def model():
    return torch.nn.Sequential(
        torch.nn.Linear({FEATURES}, 64), torch.nn.ReLU(),
        torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, {CLASSES}),
    )

def data(seed):
    made = torch.Generator().manual_seed(seed)
    inputs = torch.randn({CLASSES * PER_CLASS}, {FEATURES}, generator=made)
    return inputs, torch.arange(len(inputs)) % {CLASSES}
"""


class Stock:
    """One SuperLink and its SuperNodes; `close` ends them."""

    def __init__(self, folder: Path, nodes: int, rounds: int, epochs: int) -> None:
        self.folder, self.nodes = folder, nodes
        self.port, self.times = free_port(), folder / "times.txt"
        package = folder / "app" / "stock_app"
        package.mkdir(parents=True)
        texts = {"__init__": "", "server": SERVER, "client": CLIENT, "task": TASK}
        for name, text in texts.items():
            (package / f"{name}.py").write_text(text)
        (folder / "app" / "pyproject.toml").write_text(
            PROJECT.format(rounds=rounds, nodes=nodes, epochs=epochs, times=self.times)
        )
        (folder / "flower").mkdir()
        (folder / "flower" / "config.toml").write_text(
            f'[superlink]\ndefault = "x"\n[superlink.x]\naddress = "127.0.0.1:{self.port}"\n'
            "insecure = true\n"
        )
        self.superlink: subprocess.Popen[bytes] | None = None
        self.supernodes: list[subprocess.Popen[bytes]] = []

    def start_superlink(self) -> None:
        """Start it and wait for it."""
        self.superlink = self._start(
            "superlink", "flower-superlink", "--insecure", f"--port={self.port}",
            "--disable-runtime-dependency-installation",
            f"--database={self.folder / 'superlink.db'}",
        )  # fmt: skip
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).close()
                return
            time.sleep(0.1)
        raise RuntimeError("stock SuperLink did not come up")

    def start_supernode(self, number: int) -> subprocess.Popen[bytes]:
        """Start one; `number` is its partition."""
        made = self._start(
            f"supernode{number}", "flower-supernode", "--insecure",
            f"--superlink=127.0.0.1:{self.port}", f"--port={free_port()}",
            f"--node-config=partition-id={number}",
        )  # fmt: skip
        self.supernodes.append(made)
        return made

    def run(self) -> str:
        """Submit the run; its identity."""
        return str(self._cli("run", str(self.folder / "app"), "x")["run-id"])

    def status(self, run: str) -> str:
        """Flower's word for it."""
        runs = self._cli("list", "x", "--run-id", run).get("runs") or [{}]
        return str(runs[0].get("status", ""))

    def rounds(self) -> list[tuple[float, int, int]]:
        """Time of the end, number, good replies of each round."""
        if not self.times.exists():
            return []
        rows = [line.split() for line in self.times.read_text().splitlines()]
        return [(float(at), int(number), int(good)) for at, number, good in rows]

    def family(self, process: subprocess.Popen[bytes]) -> set[int]:
        """A process and all it started."""
        return {process.pid} | descendants(process.pid)

    def close(self) -> None:
        """End every process."""
        for process in [*self.supernodes, self.superlink]:
            if process is not None:
                stop(process)

    def _start(self, name: str, program: str, *options: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [str(Path(sys.executable).parent / program), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )

    def _cli(self, *words: str) -> dict[str, Any]:
        line: Sequence[str] = [sys.executable, "-c", "from flwr.cli.app import app; app()", *words]
        done = subprocess.run(
            [*line, "--format", "json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment(),
        )
        found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        return found

    def _environment(self) -> dict[str, str]:
        here = str(Path(sys.executable).parent)
        return (
            os.environ
            | QUIET
            | {
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_DISABLE_UPDATE_CHECK": "1",
                "FLWR_HOME": str(self.folder / "flower"),
                "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),
            }
        )
