"""Simulations over chunks of time, without Ray: forgetting and the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

from penstock.federated.models import ModelOptions
from penstock.federated.report.summary import summarise_folder
from penstock.federated.server.settings import (
    DeviceSettings,
    RunSettings,
    ServerSettings,
    TrainingSettings,
)
from penstock.federated.simulation import simulate as simulate_module
from penstock.federated.simulation.settings import SimulationSettings
from penstock.federated.simulation.simulate import simulate
from tests.federated.simulation.fleet_in_process import FleetInProcess

MODEL = ModelOptions("sensing-mlp", (4,), 2, (8, 6))


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
