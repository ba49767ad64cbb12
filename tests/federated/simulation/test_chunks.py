"""Simulations over chunks of time, without Ray: forgetting, teachers, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

from penstock.federated.arrays import Arrays, digest
from penstock.federated.fedmobile.fedmobile import TEACHER
from penstock.federated.models import ModelOptions, model_spec
from penstock.federated.protocol import TrainTask
from penstock.federated.report.records import RoundRecord
from penstock.federated.report.summary import summarise_folder
from penstock.federated.server.checkpoint import read_newest
from penstock.federated.server.run import FederatedRun
from penstock.federated.server.settings import (
    DeviceSettings,
    RunSettings,
    ServerSettings,
    TrainingSettings,
)
from penstock.federated.simulation import simulate as simulate_module
from penstock.federated.simulation.settings import SimulationSettings
from penstock.federated.simulation.simulate import simulate
from penstock.federated.slicing import extract, static_channels
from penstock.federated.training.trainer import Trainer
from tests.federated.simulation.fleet_in_process import FleetInProcess

MODEL = ModelOptions("sensing-mlp", (4,), 2, (8, 6))
SPEC = model_spec(MODEL)


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate_module, "RayFleet", FleetInProcess)


def settings(
    folder: Path, rounds: int = 4, per_chunk: int = 2
) -> tuple[SimulationSettings, ServerSettings]:
    """Four users; in the second half of their time the two classes have changed places."""
    rng = np.random.default_rng(0)
    labels, users = rng.integers(0, 2, 400), np.repeat(np.arange(4), 100)
    later = np.arange(400) % 100 >= 50
    inputs = rng.normal(size=(400, 4)) + 3.0 * (labels ^ later)[:, None]
    np.savez(folder / "w.npz", inputs=inputs.astype(np.float32), labels=labels, users=users)
    server = ServerSettings(
        run=RunSettings(str(folder / "run"), rounds=rounds, rounds_per_chunk=per_chunk),
        model=MODEL,
        training=TrainingSettings(epochs=25, batch=8, learning_rate=0.05),
        devices=DeviceSettings(),
    )
    return SimulationSettings(str(folder / "w.npz"), devices=4, partition="by-user"), server


def test_forgetting_is_reported_and_the_report_is_in_the_runs_folder(tmp_path: Path) -> None:
    records = simulate(*settings(tmp_path), note=lambda text: None)
    assert "chunk_macro_f1/1" not in records[1].figures
    assert records[1].figures["chunk_macro_f1/0"] > 0.9
    assert records[3].figures["chunk_macro_f1/1"] > 0.9
    assert records[3].figures["chunk_macro_f1/0"] < 0.2  # what it knew is the wrong way round now
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["forgetting"] > 0.7 and report["chunks"][1]["forgetting"] > 0.7
    assert summarise_folder(tmp_path / "run").to_dict() == report
    assert "Forgetting by chunk" in (tmp_path / "run" / "report.html").read_text()


def test_one_chunk_has_nothing_to_forget(tmp_path: Path) -> None:
    simulation, server = settings(tmp_path, rounds=1, per_chunk=0)
    simulate(replace(simulation, partition="iid"), server, note=lambda text: None)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["forgetting"] is None and report["measured_on"] == "server"


@pytest.mark.parametrize("stop_after", [4, 5])
def test_the_teacher_is_the_model_of_the_chunk_before_also_after_a_resume(
    stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the devices a round: most of them are asked first in the middle of a chunk."""
    taught: dict[int, set[str]] = {}
    train = Trainer.train

    def watched(self: Trainer, arrays: Arrays, data: Any, task: TrainTask, **more: Any) -> Any:
        teacher = more.get("teacher")
        taught.setdefault(task.round_number, set()).add(digest(teacher) if teacher else "")
        return train(self, arrays, data, task, **more)

    monkeypatch.setattr(Trainer, "train", watched)
    ends: dict[str, list[str]] = {}
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
        simulation, server = settings(tmp_path / name, rounds=6, per_chunk=3)
        server = replace(
            server,
            algorithm="fedmobile",
            training=TrainingSettings(epochs=1, batch=8),
            devices=DeviceSettings(fraction=0.5, ratios=((1.0, 0.5), (0.5, 0.5))),
        )
        if name == "resumed":  # the chunks and their samples stay those of six rounds
            monkeypatch.setattr(FederatedRun, "run", _some_rounds(stop_after))
            simulate(simulation, server, note=lambda text: None)
            monkeypatch.undo()
            monkeypatch.setattr(simulate_module, "RayFleet", FleetInProcess)
            monkeypatch.setattr(Trainer, "train", watched)
        simulate(simulation, server, note=lambda text: None, resume=name == "resumed")
        found = read_newest(Path(server.run.folder), print)
        assert found is not None and found.round_number == 6
        ends[name] = [digest(found.state)]
        teachers = {
            digest(extract(previous(found.state), SPEC, static_channels(SPEC, ratio)))
            for ratio in (1.0, 0.5)
        }
        assert all(taught[number] == {""} for number in (1, 2, 3))
        assert all(taught[number] <= teachers for number in (4, 5, 6)), name
        taught.clear()
    assert ends["whole"] == ends["resumed"]


def previous(state: Mapping[str, Any]) -> Arrays:
    return {n.removeprefix(TEACHER): a for n, a in state.items() if n.startswith(TEACHER)}


def _some_rounds(most: int) -> Callable[[FederatedRun], tuple[RoundRecord, ...]]:
    def run(self: FederatedRun) -> tuple[RoundRecord, ...]:
        while self.algorithm.round_number < most:
            self.records.append(self._round(self.algorithm.round_number + 1))
        return tuple(self.records)

    return run
