"""Virtual devices answer as real ones do: trained, evaluated, refused; twice the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

from penstock.federated.arrays import Arrays, digest
from penstock.federated.client.client_app import Answering
from penstock.federated.models import ModelOptions, model_spec
from penstock.federated.protocol import Notice, TrainTask
from penstock.federated.server.build import initial_model
from penstock.federated.simulation.samples import Shards, write_shards
from penstock.federated.simulation.virtual_device import (
    VirtualDevice,
    VirtualPlan,
    identity,
    keep_teacher,
    read_teacher,
)
from penstock.federated.training.data import TrainingData

MODEL = ModelOptions("sensing-mlp", (5,), 3, (8, 6))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shards]:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    centres = rng.normal(size=(3, 5)) * 3
    inputs = (centres[labels] + rng.normal(size=(60, 5))).astype(np.float32)
    parts = (np.arange(30), np.arange(30, 60))
    return folder, write_shards(folder, TrainingData(inputs, labels), parts, chunks=2)


def device(shards: tuple[Path, Shards], index: int = 0) -> VirtualDevice:
    return VirtualDevice(VirtualPlan(str(shards[0]), seed=7), shards[1], index)


def task(**changed: Any) -> TrainTask:
    plain = TrainTask("a" * 16, 1, 0, "fedavg", MODEL.to_json(), 1.0, "{}", 5, 8, 0.01, 3, 0.0)
    return replace(plain, **changed)


def arrays() -> Arrays:
    return initial_model(MODEL, 1)


def test_training_lowers_the_loss_and_is_the_same_when_asked_again(
    shards: tuple[Path, Shards],
) -> None:
    one = device(shards)
    result, trained = one.train(task(epochs=30), arrays())
    assert trained is not None and not result.refused
    assert result.sha256 == digest(trained) and result.examples == 15
    before, after = one.evaluate(task(), arrays()), one.evaluate(task(), trained)
    assert after.loss < before.loss / 2
    again, _ = device(shards).train(task(epochs=30), arrays())
    assert again.sha256 == result.sha256
    other, _ = device(shards, 1).train(task(epochs=30), arrays())
    assert other.sha256 != result.sha256 and other.device != result.device


def test_a_chunk_has_its_own_samples(shards: tuple[Path, Shards]) -> None:
    first, _ = device(shards).train(task(), arrays())
    second, _ = device(shards).train(task(chunk=1), arrays())
    assert first.sha256 != second.sha256


def test_what_does_not_fit_is_refused_with_its_reason(shards: tuple[Path, Shards]) -> None:
    wrong = replace(MODEL, input_shape=(6,))
    result, sent = device(shards).train(task(model=wrong.to_json()), initial_model(wrong, 1))
    assert sent is None and "shape (6,)" in result.refused
    result, sent = device(shards).train(task(ratio=0.5), arrays())
    assert sent is None and "expected" in result.refused
    short = device(shards)
    short.plan = replace(short.plan, memory_bytes=1000)
    result, _ = short.train(task(), arrays())
    assert "memory" in result.refused or "budget" in result.refused


def test_identities_are_stable_and_distinct() -> None:
    names = {identity(7, index) for index in range(2000)}
    assert len(names) == 2000 and identity(7, 0) == identity(7, 0) != identity(8, 0)
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in names)


def test_capabilities_tell_of_the_data(shards: tuple[Path, Shards]) -> None:
    able = device(shards, 1).capabilities()
    assert able.ready and (able.labelled, able.unlabelled) == (30, 0)
    assert json.loads(able.input_shape) == [5]


def test_it_answers_as_a_participant_does(shards: tuple[Path, Shards]) -> None:
    """The ClientApp passes on what a server says, and what was no task."""
    answering: Answering = device(shards)
    assert answering.capabilities(Notice(refused="late")) == answering.capabilities()
    answering.cannot("the server sent no arrays")


def test_the_teacher_is_kept_once_a_chunk_and_only_fedmobile_has_one(
    tmp_path: Path,
) -> None:
    folder, mobile = str(tmp_path), task(algorithm="fedmobile", chunk=1)
    assert read_teacher(folder, mobile) is None
    keep_teacher(folder, replace(mobile, chunk=0), lambda ratio: arrays())
    keep_teacher(folder, task(chunk=1), lambda ratio: arrays())
    keep_teacher(folder, mobile, lambda ratio: None)
    assert not list(tmp_path.iterdir())
    asked: list[float] = []

    def teacher(ratio: float) -> Arrays:
        asked.append(ratio)
        return arrays()

    for number in (3, 9):
        keep_teacher(folder, replace(mobile, round_number=number), teacher)
    assert asked == [1.0]
    found = read_teacher(folder, mobile)
    assert found is not None and digest(found) == digest(arrays())
    assert {n: a.shape for n, a in found.items()} == {
        tensor.name: tensor.shape for tensor in model_spec(MODEL)
    }
