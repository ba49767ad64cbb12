"""Devices in this process: real arrays and real messages, a training that is one addition.

A device's behaviour in a round can be changed: it does not answer, sends NaN, another round, other
arrays. What it does when it behaves depends on the task's seed and its identity only.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import PenstockError, RefusedUpdateError
from penstock.federated.algorithm import Algorithm, FedAvg, FedRolex, HeteroFL
from penstock.federated.arrays import Arrays, digest
from penstock.federated.models import ModelOptions, model_spec
from penstock.federated.protocol import Capabilities, TrainResult, TrainTask
from penstock.federated.server.fleet import Answer, Kind, Node, Request
from penstock.federated.server.run import FederatedRun, RunPlan
from penstock.federated.server.settings import DeviceSettings
from tests.federated.sample_models import random_arrays

MODEL = ModelOptions("sensing-mlp", (11,), 6, (9, 4))
KINDS = (FedAvg, HeteroFL, FedRolex)
MIX = ((1.0, 0.25), (0.75, 0.25), (0.5, 0.5))
Behaviour = Callable[[TrainTask, TrainResult, Arrays], "Answer | None"]


def capabilities(device: str, **changes: object) -> Capabilities:
    """Of a phone that is ready."""
    usual = Capabilities(
        device=device,
        version="0.1.0",
        memory_bytes=1 << 30,
        cores=4,
        most_ratio=1.0,
        battery=0.8,
        on_power=True,
        ready=True,
        reason="",
        labelled=20,
        unlabelled=0,
        input_shape="[11]",
        labels='["a", "b", "c", "d", "e", "f"]',
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def well_behaved(task: TrainTask, result: TrainResult, arrays: Arrays) -> Answer:
    """Answers what it made."""
    del task
    return result, arrays


@dataclass
class FakeFleet:
    """Nodes by number; `node_of` gives the order in which they are listed and answer."""

    devices: dict[Node, Capabilities]
    behaviours: dict[tuple[str, int], Behaviour] = field(default_factory=dict)
    backwards: bool = False
    strangers: dict[Node, Answer] = field(default_factory=dict)
    tasks: list[tuple[str, TrainTask, Kind]] = field(default_factory=list)
    queries: int = 0

    def query(self) -> Sequence[tuple[Node, Capabilities | PenstockError]]:
        self.queries += 1
        found = list(self.devices.items())
        return found[::-1] if self.backwards else found

    def exchange(
        self, requests: Mapping[Node, Request], deadline_s: float, kind: Kind = "train"
    ) -> Mapping[Node, Answer]:
        del deadline_s
        answers: dict[Node, Answer] = {}
        nodes = list(requests)
        for node in nodes[::-1] if self.backwards else nodes:
            task, arrays = requests[node]
            device = self.devices[node].device
            self.tasks.append((device, task, kind))
            result, trained = trained_by(device, task, arrays)
            if kind == "evaluate":
                answers[node] = replace(result, accuracy=0.5, macro_f1=0.25, sha256=""), None
                continue
            behave = self.behaviours.get((device, task.round_number), well_behaved)
            answer = behave(task, result, trained)
            if answer is not None:
                answers[node] = answer
        return answers | self.strangers


def trained_by(device: str, task: TrainTask, arrays: Arrays) -> tuple[TrainResult, Arrays]:
    """The deterministic stand-in for training."""
    rng = np.random.default_rng([task.seed, zlib.crc32(device.encode())])
    trained: Arrays = {}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            trained[name] = (array + rng.normal(0, 0.1, array.shape)).astype(array.dtype)
        else:
            trained[name] = array + 3
    result = TrainResult(
        device=device,
        run=task.run,
        round_number=task.round_number,
        examples=10 + zlib.crc32(device.encode()) % 7,
        loss=0.5,
        seconds=1.5,
        peak_bytes=1000,
        sha256=digest(trained),
    )
    return result, trained


def fleet_of(count: int) -> FakeFleet:
    """Devices d0, d1, ..."""
    return FakeFleet({100 + i: capabilities(f"d{i}") for i in range(count)})


def plan_of(rounds: int = 4, seed: int = 7, keep: int = 3, **devices: object) -> RunPlan:
    """A plan for `MODEL`."""
    usual = DeviceSettings(ratios=MIX, wait_s=0.0)
    return RunPlan(
        MODEL,
        rounds,
        seed=seed,
        keep=keep,
        devices=replace(usual, **devices),  # type: ignore[arg-type]
    )


def algorithm_of(kind: type[Algorithm] = HeteroFL) -> Algorithm:
    """With an initial model that is the same each time."""
    spec = model_spec(MODEL)
    return kind(spec, random_arrays(spec, 3))


def run_of(
    folder: Path,
    fleet: FakeFleet | None = None,
    plan: RunPlan | None = None,
    kind: type[Algorithm] = FedRolex,
    notes: list[str] | None = None,
) -> FederatedRun:
    """A run that has not begun; its identity is drawn when it begins."""
    told = notes if notes is not None else []
    return FederatedRun(
        algorithm_of(kind),
        fleet or fleet_of(5),
        plan or plan_of(),
        folder,
        note=told.append,
        sleep=lambda seconds: None,
    )


def finished(folder: Path, **options: Any) -> FederatedRun:
    """A run that did all its rounds."""
    run = run_of(folder, **options)
    run.begin()
    run.run()
    return run


def same_records(one: FederatedRun, other: FederatedRun) -> None:
    """But for what differs between any two runs."""
    plain = [replace(r, run="", server_seconds=0.0) for r in one.records]
    assert plain == [replace(r, run="", server_seconds=0.0) for r in other.records]


def refuse(text: str) -> Behaviour:
    """The transport failed."""
    return lambda task, result, arrays: RefusedUpdateError(text)
