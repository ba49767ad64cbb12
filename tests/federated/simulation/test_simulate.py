"""A whole simulation on Ray: four devices of two widths, three rounds; a dead actor; the end clean.

One start of Ray serves every test here; it takes most of their time.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

from penstock.federated.models import ModelOptions
from penstock.federated.protocol import TrainTask
from penstock.federated.report.summary import summarise_folder
from penstock.federated.server.build import build_run, initial_model
from penstock.federated.server.settings import (
    DeviceSettings,
    RunSettings,
    ServerSettings,
    TrainingSettings,
)
from penstock.federated.simulation.ray_fleet import RayFleet
from penstock.federated.simulation.samples import Shards
from penstock.federated.simulation.settings import SimulationSettings
from penstock.federated.simulation.simulate import share_out
from penstock.federated.simulation.virtual_device import VirtualDevice, VirtualPlan
from tests.needs import needs

# Ray lets go of its processes and sockets without closing them.
pytestmark = [
    pytest.mark.slow,
    needs("ray", "flwr"),  # pip install 'penstock[simulation]'
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Flower's, of click
    # Ray forks, and in a test process JAX may have been imported by an export before.
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
]
MODEL = ModelOptions("sensing-mlp", (5,), 3, (8, 6))
DEVICES = 4


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[SimulationSettings, ServerSettings]:
    folder = tmp_path_factory.mktemp("simulation")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    inputs = (rng.normal(size=(3, 5)) * 2)[labels] + rng.normal(size=(200, 5))
    np.savez(folder / "windows.npz", inputs=inputs.astype(np.float32), labels=labels)
    server = ServerSettings(
        run=RunSettings(str(folder / "run"), rounds=3),
        model=MODEL,
        algorithm="heterofl",
        training=TrainingSettings(epochs=4, batch=8, learning_rate=0.01),
        devices=DeviceSettings(ratios=((1.0, 0.5), (0.5, 0.5)), evaluate_every=3),
    )
    simulation = SimulationSettings(
        str(folder / "windows.npz"), devices=DEVICES, partition="iid", actors=1
    )
    return simulation, server


@pytest.fixture(scope="module")
def shards(
    settings: tuple[SimulationSettings, ServerSettings], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Shards, Any]:
    folder = tmp_path_factory.mktemp("shards")
    return folder, *share_out(*settings, folder)


@pytest.fixture(scope="module")
def fleet(shards: tuple[Path, Shards, Any]) -> Iterator[RayFleet]:
    path = os.environ.get("PYTHONPATH")
    made = RayFleet(shards[1], VirtualPlan(str(shards[0]), seed=1), actors=1)
    scratch = Path(made._scratch)
    assert scratch.is_dir() and os.environ.get("PYTHONPATH") == path
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    with made:
        yield made
    import ray

    assert not scratch.exists() and not ray.is_initialized()
    del made
    gc.collect()  # here, where Ray's warnings are let through


def task(**changed: Any) -> TrainTask:
    plain = TrainTask("a" * 16, 1, 0, "fedavg", MODEL.to_json(), 1.0, "{}", 2, 8, 0.01, 3, 0.0)
    return replace(plain, **changed)


def test_a_run_of_two_widths_ends_with_a_report(
    fleet: RayFleet, settings: tuple[SimulationSettings, ServerSettings]
) -> None:
    run = build_run(settings[1], fleet, note=lambda text: None)
    run.begin()
    records = run.run()
    assert len(records) == 3
    for record in records:
        assert len(record.devices) == DEVICES and record.refused == {}
        assert len(set(record.bytes_up.values())) == 2  # two widths
        assert record.examples == 160  # a fifth is kept aside
    assert records[-1].accuracy >= 0
    assert records[-1].loss < records[0].loss
    assert summarise_folder(Path(settings[1].run.folder)).rounds == records


def test_an_actor_gives_what_the_device_gives_in_this_process(
    fleet: RayFleet, shards: tuple[Path, Shards, Any]
) -> None:
    arrays = initial_model(MODEL, 1)
    answers = fleet.exchange({2: (task(), arrays)}, 60)
    here, _ = VirtualDevice(fleet.plan, shards[1], 2).train(task(), arrays)
    answer = answers[2]
    assert isinstance(answer, tuple) and not answer[0].refused
    assert answer[0].sha256 == here.sha256


def test_a_refusal_is_an_answer_and_the_others_go_on(fleet: RayFleet) -> None:
    arrays = initial_model(MODEL, 1)
    bad = {name: array * np.nan for name, array in arrays.items()}
    answers = fleet.exchange({0: (task(), bad), 1: (task(), arrays)}, 60)
    first, second = answers[0], answers[1]
    assert isinstance(first, tuple) and isinstance(second, tuple)
    assert "nan" in first[0].refused and first[1] is None
    assert not second[0].refused and second[1] is not None


def test_what_is_no_task_is_refused_by_the_device_itself(fleet: RayFleet) -> None:
    answer = fleet.exchange({0: (task(), None)}, 60)[0]  # type: ignore[dict-item]
    assert isinstance(answer, tuple) and "sent no arrays" in answer[0].refused


def test_a_dead_actor_is_replaced_and_its_device_asked_again(fleet: RayFleet) -> None:
    import ray

    ray.kill(fleet._backend.pool.pool[0])
    arrays = initial_model(MODEL, 1)
    answers = fleet.exchange({i: (task(), arrays) for i in range(DEVICES)}, 60)
    assert len(answers) == DEVICES
    assert all(isinstance(answer, tuple) and answer[1] for answer in answers.values())
    assert len(fleet._backend.pool.pool) == 1
