"""One simulated federation in a process of its own, so that its memory is its own; prints JSON.

    python benchmarks/federated_simulation_child.py ours 100 3 FOLDER

`ours` is `penstock.federated.simulation`; `stock` runs the same devices, rounds and messages under
Flower's `run_simulation`, over its in-memory SuperLink.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil  # type: ignore[import-untyped]

from penstock.federated.flower_content import no_calls_home
from penstock.federated.models import ModelOptions
from penstock.federated.report.records import RoundRecord
from penstock.federated.server.build import build_run
from penstock.federated.server.grid_fleet import GridFleet
from penstock.federated.server.settings import (
    DeviceSettings,
    RunSettings,
    ServerSettings,
    TrainingSettings,
)
from penstock.federated.simulation.ray_fleet import OBJECT_STORE_BYTES
from penstock.federated.simulation.settings import SimulationSettings
from penstock.federated.simulation.simulate import share_out, simulate
from penstock.federated.simulation.virtual_device import VirtualApp, VirtualPlan

SAMPLES = 20  # of each device
MODEL = ModelOptions("sensing-mlp", (43,), 6)  # WISDM's shape
EVERY_S = 0.5  # between two looks at the memory


class Watch(threading.Thread):
    """Most memory of this process and all that it started, in bytes: proportional set sizes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.processes = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(EVERY_S):
            held, count = 0, 0
            own = psutil.Process()
            for process in [own, *own.children(recursive=True)]:
                try:
                    held += process.memory_full_info().pss
                    count += 1
                except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    continue
            if held > self.peak:
                self.peak, self.processes = held, count

    def stop(self) -> None:
        """No look more."""
        self._over.set()
        self.join()


def main() -> None:
    kind, devices, rounds, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    no_calls_home()
    data = Path(folder) / "windows.npz"
    _write_data(data, devices * SAMPLES * 5 // 4)  # a fifth is kept aside
    server = ServerSettings(
        run=RunSettings(str(Path(folder) / "run"), rounds=rounds),
        model=MODEL,
        algorithm="heterofl",
        training=TrainingSettings(epochs=2, batch=10),
        devices=DeviceSettings(ratios=((1.0, 0.5), (0.5, 0.5))),
    )
    simulation = SimulationSettings(str(data), devices=devices, partition="dirichlet", alpha=0.5)
    watch = Watch()
    watch.start()
    began = time.monotonic()
    ends: list[float] = []

    def note(text: str) -> None:
        if text.startswith("round "):
            ends.append(time.monotonic() - began)

    up: list[float] = []
    if kind == "ours":
        records = simulate(
            simulation, server, note=note, started=lambda _: up.append(time.monotonic() - began)
        )
    else:
        records = _stock(
            simulation, server, lambda: up.append(time.monotonic() - began), ends, began
        )
    over = time.monotonic() - began
    watch.stop()
    took = np.diff([up[0], *ends])
    print(
        json.dumps(
            {
                "kind": kind,
                "devices": devices,
                "start_s": up[0],
                "rounds_s": took.tolist(),
                "whole_s": over,
                "server_s": [record.server_seconds for record in records],
                "device_s": [sum(record.device_seconds.values()) for record in records],
                "counted": [len(record.devices) for record in records],
                "accuracy": records[-1].global_accuracy,
                "peak_bytes": watch.peak,
                "processes": watch.processes,
            }
        )
    )


def _stock(
    simulation: SimulationSettings,
    server: ServerSettings,
    started: Callable[[], None],
    ends: list[float],
    began: float,
) -> tuple[RoundRecord, ...]:
    """The same under Flower's own engine."""
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    made: list[tuple[RoundRecord, ...]] = []
    with tempfile.TemporaryDirectory() as scratch:
        share_out(simulation, server, Path(scratch))
        app = ServerApp()

        @app.main()
        def main(grid: Any, context: Any) -> None:
            while len(list(grid.get_node_ids())) < simulation.devices:
                time.sleep(0.05)
            run = build_run(server, GridFleet(grid, query_s=600.0), note=lambda text: None)
            run.begin()
            GridFleet(grid, query_s=600.0).query()  # ours is up when its actors are
            started()
            add = run.records.append

            class Told(list[RoundRecord]):
                def append(self, record: RoundRecord) -> None:
                    add(record)
                    super().append(record)
                    ends.append(time.monotonic() - began)

            run.records = Told()
            made.append(run.run())

        try:
            run_simulation(
                app,
                cast("ClientApp", VirtualApp(VirtualPlan(scratch, server.run.seed))),
                simulation.devices,
                backend_config={
                    "init_args": {
                        "num_cpus": simulation.processes,
                        "object_store_memory": OBJECT_STORE_BYTES,
                        "include_dashboard": False,
                    },
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )
        except Exception:  # the server's thread waits for devices that will not come
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return made[0]


def _write_data(path: Path, samples: int) -> None:
    """Synthetic features: six classes around their centres."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, MODEL.classes, samples)
    centres = rng.normal(size=(MODEL.classes, *MODEL.input_shape))
    inputs = centres[labels] + rng.normal(size=(samples, *MODEL.input_shape))
    np.savez(path, inputs=inputs.astype(np.float32), labels=labels)


if __name__ == "__main__":
    main()
