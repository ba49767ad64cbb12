"""A device without a network: one training a question, refusals with a reason, time chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import StorageError
from penstock.federated.arrays import Arrays, digest
from penstock.federated.client.answers import device_seed
from penstock.federated.client.participant import Limits, Participant, Readiness
from penstock.federated.client.rounds import GLOBAL, TEACHER
from penstock.federated.client.store import Store
from penstock.federated.fedmobile.settings import FedMobileSettings
from penstock.federated.models.registry import ModelOptions, model_spec
from penstock.federated.protocol import TrainTask
from penstock.federated.training.trainer import Trainer

pytest.importorskip("torch")

MODEL = ModelOptions("sensing-mlp", (6,), 3, (8,))
DEVICE = "0123456789abcdef"
TASK = TrainTask(
    "f" * 16, 1, 0, "fedavg", MODEL.to_json(), 1.0, "{}", 2, 8, 0.01, seed=5, seconds=0.0
)


def arrays_of(ratio: float = 1.0, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        tensor.name: np.zeros(tensor.shape, np.int64)
        if tensor.kind == "counter"
        else np.abs(rng.normal(0, 0.3, tensor.shape)).astype(np.float32)
        for tensor in model_spec(MODEL).at(ratio)
    }


def fill(store: Store, seed: int = 0, count: int = 40) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    inputs = rng.normal(size=(count, 6)) + labels[:, None]
    store.add(inputs.astype(np.float32), np.where(np.arange(count) < count // 2, labels, -1))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "s.db") as made:
        fill(made)
        yield made


def test_it_trains_and_says_so(store: Store) -> None:
    result, arrays = Participant(store, DEVICE).train(TASK, arrays_of())
    assert arrays is not None and not result.refused
    assert (result.device, result.run, result.round_number) == (DEVICE, TASK.run, 1)
    assert result.examples == result.labelled == 20 and result.steps > 0
    assert result.sha256 == digest(arrays) != digest(arrays_of())
    kept = store.rounds.model(GLOBAL)
    assert kept is not None and digest(kept.arrays) == digest(arrays_of())


def test_the_same_question_is_trained_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Participant(store, DEVICE)
    result, arrays = first.train(TASK, arrays_of())
    assert arrays is not None
    another = Participant(store, DEVICE)  # as after a crash

    def forbidden(*_: object) -> object:
        raise AssertionError("trained again")

    monkeypatch.setattr(another, "_train", forbidden)
    again, same = another.train(replace(TASK, seconds=9.0), arrays_of())
    assert same is not None
    assert again == result and digest(same) == digest(arrays)
    with pytest.raises(AssertionError, match="trained again"):
        another.train(TASK, arrays_of(seed=1))  # the same round of other arrays is another question


def test_two_devices_and_rounds_draw_other_batches(store: Store) -> None:
    one = Participant(store, DEVICE).train(TASK, arrays_of())[0].sha256
    other = Participant(store, "f" * 16).train(replace(TASK, round_number=2), arrays_of())[0].sha256
    assert one != other
    assert device_seed(1, "a") == device_seed(1, "a") != device_seed(1, "b")
    assert 0 <= device_seed(-(1 << 62), "a") < 1 << 63


def bad_arrays(kind: str) -> Arrays:
    arrays = arrays_of()
    name = next(iter(arrays))
    if kind == "shape":
        arrays[name] = arrays[name][:1]
    elif kind == "nan":
        arrays[name].flat[0] = np.nan
    elif kind == "missing":
        del arrays[name]
    elif kind == "type":
        arrays[name] = arrays[name].astype(np.float64)
    return arrays


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({}, "shape", "has shape"),
        ({}, "nan", "expected a finite number"),
        ({}, "missing", "other arrays than asked"),
        ({}, "type", "has type float64"),
        ({"round_number": 0}, "", "round 0"),
        ({"chunk": -1}, "", "chunk -1"),
        ({"run": ""}, "", "run ''"),
        ({"ratio": 0.5}, "", "has shape"),
        ({"ratio": 7.0}, "", "ratio 7, this device takes 1"),
        ({"ratio": -1.0}, "", "ratio is -1"),
        ({"model": "{}"}, "", "not a model's description"),
        ({"model": ModelOptions("sensing-mlp", (7,), 3, (8,)).to_json()}, "", "other sensors"),
        ({"epochs": 0}, "", "epochs is 0"),
        ({"batch": -3}, "", "batch is -3"),
        ({"learning_rate": -1.0}, "", "learning_rate is -1"),
        ({"algorithm": "fedmobile", "settings": "[]"}, "", "expected an object"),
    ],
)
def test_what_it_refuses(store: Store, changes: dict[str, object], kind: str, message: str) -> None:
    task = replace(TASK, **changes)  # type: ignore[arg-type]
    result, arrays = Participant(store, DEVICE).train(task, bad_arrays(kind))
    assert arrays is None and message in result.refused
    assert store.counts().labelled == 20, "nothing is lost"


def test_a_label_beyond_the_model_is_refused(store: Store) -> None:
    store.add(np.full((1, 6), 9, np.float32), np.array([3]))
    result, _ = Participant(store, DEVICE).train(TASK, arrays_of())
    assert "label 3" in result.refused


def test_not_now(store: Store) -> None:
    now = Readiness("it runs on battery", 0.4, False)
    device = Participant(store, DEVICE, readiness=lambda: now)
    result, arrays = device.train(TASK, arrays_of())
    assert arrays is None and result.refused == "not now: it runs on battery"
    said = device.capabilities()
    assert (said.ready, said.reason, said.battery) == (False, "it runs on battery", 0.4)
    now = Readiness()
    assert not device.train(TASK, arrays_of())[0].refused, "a refusal is not the last word"


def test_stopped_and_too_late(store: Store) -> None:
    stopped, _ = Participant(store, DEVICE, should_stop=lambda: True).train(TASK, arrays_of())
    assert "asked to stop" in stopped.refused
    late, _ = Participant(store, DEVICE, Limits(most_seconds=1e-9)).train(TASK, arrays_of())
    assert "was over before the first step" in late.refused


@pytest.mark.parametrize(
    ("age", "seconds", "expected"),
    [(20, 60, 40), (-100, 60, 60), (500, 60, 0.001), (500, 0, 0)],
)
def test_the_seconds_of_a_task_count_from_when_it_was_asked(
    store: Store, monkeypatch: pytest.MonkeyPatch, age: float, seconds: float, expected: float
) -> None:
    """It may have lain here while the process was started anew, which takes its time too."""
    given: list[float] = []

    def train(self: Trainer, arrays: Arrays, data: object, task: TrainTask, **_: object) -> object:
        given.append(task.seconds)
        raise RuntimeError("enough")

    monkeypatch.setattr(Trainer, "train", train)
    asked_at = time.time() - age
    Participant(store, DEVICE).train(replace(TASK, seconds=seconds), arrays_of(), asked_at)
    assert given == [pytest.approx(expected, abs=5.0 if age == 20 else 0.1)]


def test_without_the_memory(store: Store) -> None:
    result, _ = Participant(store, DEVICE, Limits(memory_bytes=2000)).train(TASK, arrays_of())
    assert "memory" in result.refused and "budget" in result.refused


def test_capabilities(store: Store, tmp_path: Path) -> None:
    said = Participant(store, DEVICE, Limits(1 << 20, 2, 0.5)).capabilities()
    assert (said.memory_bytes, said.cores, said.most_ratio) == (1 << 20, 2, 0.5)
    assert (said.labelled, said.unlabelled, said.input_shape) == (20, 20, "[6]")
    assert said.ready
    with Store.open(tmp_path / "empty.db") as empty:
        nothing = Participant(empty, DEVICE).capabilities()
    assert not nothing.ready and "ingest" in nothing.reason and nothing.input_shape == "[]"


def test_evaluate(store: Store) -> None:
    result = Participant(store, DEVICE).evaluate(TASK, arrays_of())
    assert result.examples == 20 and 0 <= result.accuracy <= 1 and result.loss > 0
    assert "shape" in Participant(store, DEVICE).evaluate(TASK, bad_arrays("shape")).refused


def test_a_narrow_device_trains_its_slice(store: Store) -> None:
    device = Participant(store, DEVICE, Limits(most_ratio=0.5))
    result, arrays = device.train(replace(TASK, ratio=0.5), arrays_of(0.5))
    assert not result.refused and arrays is not None
    assert "this device takes 0.5" in device.train(TASK, arrays_of())[0].refused


def test_the_turn_of_a_chunk(store: Store) -> None:
    settings = FedMobileSettings(exemplars_per_class=2).to_json()
    task = replace(TASK, algorithm="fedmobile", settings=settings)
    device = Participant(store, DEVICE)
    assert not device.train(task, arrays_of())[0].refused
    assert store.rounds.model(TEACHER) is None, "chunk 0 has no model before it"
    fill(store, seed=1)
    end_of_chunk = arrays_of(seed=2)
    device = Participant(store, DEVICE)  # chunks are days apart: by then it is another process
    first = replace(task, round_number=2, chunk=1, chunk_round=1)
    result, _ = device.train(first, end_of_chunk)
    assert not result.refused
    teacher = store.rounds.model(TEACHER)
    assert teacher is not None and digest(teacher.arrays) == digest(end_of_chunk)
    counts = store.counts()
    assert (counts.labelled, counts.unlabelled, counts.chunk) == (20, 20, 1)
    assert 1 <= counts.exemplars <= 6
    device.train(replace(task, round_number=3, chunk=1, chunk_round=2), arrays_of(seed=3))
    kept = store.rounds.model(TEACHER)
    assert kept is not None and digest(kept.arrays) == digest(end_of_chunk)


@pytest.mark.parametrize("asked", ["in both", "in the second only", "two chunks ago"])
@pytest.mark.parametrize("evaluated_first", [False, True])
def test_who_misses_a_chunks_first_round_has_no_model_of_its_middle_for_teacher(
    store: Store, monkeypatch: pytest.MonkeyPatch, asked: str, evaluated_first: bool
) -> None:
    """With `fraction` below 1, a missed deadline, or a device that was not ready."""
    task = replace(TASK, algorithm="fedmobile", settings=FedMobileSettings().to_json())
    device, chunk = Participant(store, DEVICE), 2 if asked == "two chunks ago" else 1
    before = arrays_of(seed=5)
    if asked != "in the second only":
        assert not device.train(replace(task, chunk_round=4), before)[0].refused
    fill(store, seed=1)
    late = replace(task, round_number=8, chunk=chunk, chunk_round=3)
    if evaluated_first:  # in the first round, but after its training
        first = replace(late, round_number=6, chunk_round=1)
        assert not device.evaluate(first, arrays_of(seed=6)).refused
    given: list[Arrays | None] = []
    train = Trainer.train

    def watched(self: Trainer, *args: Any, teacher: Arrays | None, **more: Any) -> Any:
        given.append(teacher)
        return train(self, *args, teacher=teacher, **more)

    monkeypatch.setattr(Trainer, "train", watched)
    for number in (8, 9):
        result, _ = device.train(replace(late, round_number=number), arrays_of(seed=number))
        assert not result.refused
    expected = digest(before) if asked == "in both" else None
    assert [teacher and digest(teacher) for teacher in given] == [expected, expected]


def test_exemplars_are_chosen_from_what_is_whole_and_fits(store: Store) -> None:
    settings = FedMobileSettings(exemplars_per_class=2).to_json()
    task = replace(TASK, algorithm="fedmobile", settings=settings)
    assert not Participant(store, DEVICE).evaluate(task, arrays_of()).refused
    with store.database.writing() as db:  # as by a disk that lies
        db.execute("UPDATE samples SET data = zeroblob(24) WHERE label IS NOT NULL AND id % 2")
    few = Limits(memory_bytes=2 * 4 * 24)
    refused = Participant(store, DEVICE, few).evaluate(replace(task, chunk=1), arrays_of()).refused
    assert "none of the windows here has a label" in refused
    data = store.training_data(exemplars=True)
    assert 1 <= len(data) <= 4 and store.counts().exemplars == len(data)


@pytest.mark.parametrize(
    ("changes", "label", "message"),
    [
        ({"epochs": 0}, 0, "epochs is 0"),
        ({"learning_rate": -1.0}, 0, "learning_rate is -1"),
        ({"algorithm": "fedmobile", "settings": "[]"}, 0, "expected an object"),
        ({}, 3, "label 3"),
    ],
)
def test_a_task_that_cannot_be_done_closes_no_chunk(
    store: Store, changes: dict[str, object], label: int, message: str
) -> None:
    device = Participant(store, DEVICE)
    assert not device.train(TASK, arrays_of())[0].refused
    store.add(np.full((1, 6), 9, np.float32), np.array([label]))
    task = replace(TASK, round_number=2, chunk=1, **changes)  # type: ignore[arg-type]
    assert message in device.train(task, arrays_of())[0].refused
    assert message in device.evaluate(task, arrays_of()).refused
    counts = store.counts()
    assert (counts.chunk, counts.labelled, counts.unlabelled) == (0, 21, 20)


def test_labels_of_other_chunks_hold_nothing(store: Store) -> None:
    store.add(np.full((1, 6), 9, np.float32), np.array([3]))
    device = Participant(store, DEVICE)
    store.begin_chunk(TASK.run, 0)
    fill(store, seed=1)
    store.add(np.full((1, 6), 8, np.float32), np.array([3]), chunk=2)
    result, _ = device.train(replace(TASK, round_number=2, chunk=1), arrays_of())
    assert not result.refused and store.counts().labelled == 20
    assert "label 3" in device.train(replace(TASK, chunk=2), arrays_of())[0].refused
    assert store.counts().chunk == 1
    assert "label 3" in device.train(replace(TASK, run="new", chunk=2), arrays_of())[0].refused
    assert not device.train(replace(TASK, run="new"), arrays_of())[0].refused


def test_a_store_that_is_full_or_busy_is_no_refusal(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked again then: by the journal, or by the server."""
    device = Participant(store, DEVICE)

    def busy(*_: object) -> None:
        raise StorageError("database is locked; nothing was written")

    with monkeypatch.context() as patched:
        patched.setattr(store, "begin_chunk", busy)
        with pytest.raises(StorageError, match="locked"):
            device.train(TASK, arrays_of())
        with pytest.raises(StorageError, match="locked"):
            device.evaluate(TASK, arrays_of())
    assert not device.train(TASK, arrays_of())[0].refused


def test_a_fault_is_an_answer_and_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Participant(store, DEVICE)

    def broken(*_: object) -> object:
        raise RuntimeError("out of tensors")

    monkeypatch.setattr(device, "_warm", broken)
    result, arrays = device.train(TASK, arrays_of())
    assert arrays is None and "RuntimeError: out of tensors" in result.refused
    monkeypatch.undo()
    assert not device.train(TASK, arrays_of())[0].refused
