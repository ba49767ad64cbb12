"""The trainer on real torch models: it learns, repeats itself, keeps budgets and refuses."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from penstock.errors import BudgetError, FormatError, RefusedUpdateError, UsageError  # noqa: E402
from penstock.federated.arrays import Arrays, copy_arrays, digest  # noqa: E402
from penstock.federated.fedmobile import propagation  # noqa: E402
from penstock.federated.fedmobile.settings import FedMobileSettings  # noqa: E402
from penstock.federated.models.registry import ModelOptions, build_module  # noqa: E402
from penstock.federated.protocol import TrainTask  # noqa: E402
from penstock.federated.training.data import TrainingData, empty_data  # noqa: E402
from penstock.federated.training.trainer import Trainer  # noqa: E402

MLP = ModelOptions("sensing-mlp", (6,), 3, (16, 8))
CNN = ModelOptions("sensing-cnn", (6, 32), 3, (8, 8))
TASK = TrainTask(
    run="0" * 16,
    round_number=1,
    chunk=0,
    algorithm="fedavg",
    model=MLP.to_json(),
    ratio=1.0,
    settings="{}",
    epochs=5,
    batch=8,
    learning_rate=1e-2,
    seed=7,
    seconds=0.0,
)
FEDMOBILE = replace(TASK, algorithm="fedmobile")


def initial(options: ModelOptions, ratio: float = 1.0, seed: int = 0) -> Arrays:
    torch.manual_seed(seed)
    module = build_module(options, ratio)
    return {name: t.numpy().copy() for name, t in module.state_dict().items()}


def blobs(options: ModelOptions, n: int = 60, unlabelled: float = 0.0, seed: int = 0) -> Any:
    """Three classes around three points; for series, around three levels of the channels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    centres = np.random.default_rng(99).normal(0, 2, size=(3, options.input_shape[0]))
    shape = (n, options.input_shape[0]) + (1,) * (len(options.input_shape) - 1)
    inputs = centres[labels].reshape(shape) + 0.4 * rng.normal(size=(n, *options.input_shape))
    labels[rng.random(n) < unlabelled] = -1
    return TrainingData(inputs.astype(np.float32), labels)


@pytest.fixture(scope="module")
def mlp() -> Trainer:
    return Trainer(MLP, 1.0)


@pytest.mark.parametrize("options", [MLP, CNN])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedmobile"])
def test_it_learns(options: ModelOptions, ratio: float, algorithm: str) -> None:
    trainer = Trainer(options, ratio)
    task = replace(TASK, algorithm=algorithm, epochs=12)
    data = blobs(options, unlabelled=0.5 if algorithm == "fedmobile" else 0.0)
    before = initial(options, ratio)
    trained = trainer.train(before, data, task)
    assert trained.steps > 20
    assert trained.labelled == len(data.labelled)
    assert not trained.stopped
    if algorithm == "fedmobile":
        assert trained.examples == len(data)
        assert 0 <= trained.confident <= len(data.unlabelled)
    held_out = blobs(options, 200, seed=1)
    found = trainer.evaluate(trained.arrays, held_out)
    assert found.examples == 200
    assert found.macro_f1 > 0.9 > trainer.evaluate(before, held_out).macro_f1


@pytest.mark.parametrize("task", [TASK, FEDMOBILE])
def test_the_same_seed_gives_the_same_bits_and_nothing_given_changes(task: TrainTask) -> None:
    data, arrays, teacher = blobs(CNN, unlabelled=0.3), initial(CNN), initial(CNN, seed=1)
    before = digest(arrays), digest(teacher), data.inputs.copy()
    warm = Trainer(CNN, 1.0)
    first = warm.train(arrays, data, task, teacher=teacher)
    again = warm.train(arrays, data, task, teacher=teacher)
    fresh = Trainer(CNN, 1.0).train(arrays, data, task, teacher=teacher)
    assert digest(first.arrays) == digest(again.arrays) == digest(fresh.arrays)
    assert (digest(arrays), digest(teacher)) == before[:2]
    assert (data.inputs == before[2]).all()
    other = warm.train(arrays, data, replace(task, seed=8), teacher=teacher)
    assert digest(other.arrays) != digest(first.arrays)
    assert warm.train(arrays, data, replace(task, seed=-8), teacher=teacher).steps


def test_two_threads_give_what_one_gives(mlp: Trainer) -> None:
    # of the CNN only the predictions agree: a bias before BatchNorm has no gradient but rounding
    data, task = blobs(MLP, 500), replace(TASK, batch=256)
    one = mlp.train(initial(MLP), data, task).arrays
    two = Trainer(MLP, 1.0, threads=2).train(initial(MLP), data, task).arrays
    for name, array in one.items():
        assert two[name] == pytest.approx(array, rel=1e-3, abs=1e-4), name


def test_evaluation_against_numpy(mlp: Trainer) -> None:
    arrays, data = initial(MLP), blobs(MLP, 50, unlabelled=0.2)
    hidden = data.inputs[data.labelled].astype(np.float64)
    for layer in ("hidden1", "hidden2"):
        hidden = np.maximum(hidden @ arrays[f"{layer}.weight"].T + arrays[f"{layer}.bias"], 0)
    logits = hidden @ arrays["classifier.weight"].T + arrays["classifier.bias"]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = data.labels[data.labelled]
    found = mlp.evaluate(arrays, data, batch=7)
    assert found.examples == len(labels)
    assert found.loss == pytest.approx(-np.log(p[np.arange(len(labels)), labels]).mean(), rel=1e-5)
    assert found.accuracy == pytest.approx((p.argmax(axis=1) == labels).mean())
    given = mlp.features(arrays, data.inputs[data.labelled], batch=9)
    assert given == pytest.approx(hidden, rel=1e-4, abs=1e-5)
    nothing = mlp.evaluate(arrays, empty_data((6,)))
    assert (nothing.examples, nothing.loss, nothing.macro_f1) == (0, 0.0, 0.0)
    assert nothing.per_class_f1 == (-1.0, -1.0, -1.0)


def test_a_chunks_graph_is_made_once_for_all_its_rounds(
    mlp: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    graph = propagation._graph

    def watched(points: Any, should_stop: Any) -> Any:
        made.append(len(points))
        return graph(points, should_stop)

    monkeypatch.setattr(propagation, "_graph", watched)
    data, task = blobs(MLP, unlabelled=0.5), replace(FEDMOBILE, settings='{"propagation":1.0}')
    for number in (1, 2, 3):
        mlp.train(initial(MLP, seed=number), data, replace(task, round_number=number))
    assert made == [60]
    mlp.train(initial(MLP), blobs(MLP, 50, unlabelled=0.5), task)
    assert made == [60, 50]
    stopped = mlp.train(initial(MLP), data, task, should_stop=lambda: True)
    assert stopped.stopped and not stopped.steps and made == [60, 50]
    late = mlp.train(initial(MLP), data, replace(task, seconds=1e-6))
    assert late.stopped and not late.steps and made == [60, 50], "the deadline counts here too"


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("task", [TASK, FEDMOBILE])
def test_the_least_budget_works_and_one_byte_less_is_refused(mlp: Trainer, task: TrainTask) -> None:
    data = blobs(MLP, unlabelled=0.5)
    task = replace(
        task, settings='{"augment":false,"consistency":0}' if task is FEDMOBILE else "{}"
    )
    with pytest.raises(BudgetError, match="bytes of memory at least") as refused:
        mlp.train(initial(MLP), data, task, memory_bytes=1)
    least = refused.value.least_bytes
    assert least is not None
    tight = mlp.train(initial(MLP), data, task, memory_bytes=least)
    assert tight.part == 1
    with pytest.raises(BudgetError):
        mlp.train(initial(MLP), data, task, memory_bytes=least - 1)
    free = mlp.train(initial(MLP), data, task)
    assert free.part >= 8
    assert tight.steps == free.steps
    for name, array in free.arrays.items():  # accumulated gradients are the batch's own
        assert tight.arrays[name] == pytest.approx(array, rel=1e-3, abs=1e-4), name


def resident_memory_case() -> None:
    """Run in a process of its own: what other tests freed would be taken again unseen."""
    wide = ModelOptions("sensing-cnn", (6, 4096), 3, (32, 32))
    data = blobs(wide, 64)
    trainer = Trainer(wide, 1.0)
    task = replace(TASK, epochs=1, batch=64)
    budget = 80 << 20
    warm = trainer.train(initial(wide), data.subset(np.arange(2)), task)
    with open("/proc/self/status") as file:
        idle = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS"))
    tight = trainer.train(initial(wide), data, task, memory_bytes=budget)
    assert 1 <= tight.part < 64
    free = trainer.train(initial(wide), data, task)
    assert free.part == 64
    assert tight.peak_bytes - idle <= budget
    assert free.peak_bytes - idle > budget, "the case must need the budget"
    assert warm.peak_bytes > 0


def test_resident_memory_stays_within_the_budget() -> None:
    root = Path(__file__).parents[3]
    name = ".".join(Path(__file__).relative_to(root).with_suffix("").parts)
    code = f"from {name} import resident_memory_case; resident_memory_case()"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# ---------------------------------------------------------------- time


def test_the_time_budget_ends_a_long_training(mlp: Trainer) -> None:
    began = time.monotonic()
    task = replace(TASK, epochs=10_000, seconds=1.0)
    trained = mlp.train(initial(MLP), blobs(MLP), task)
    taken = time.monotonic() - began
    assert trained.stopped
    assert trained.steps > 0
    assert taken < 4  # there are more workers than cores
    assert trained.seconds <= taken


def test_asked_to_stop(mlp: Trainer) -> None:
    asked = iter([False] * 3 + [True] * 9)
    trained = mlp.train(initial(MLP), blobs(MLP), TASK, should_stop=lambda: next(asked))
    assert (trained.steps, trained.stopped) == (3, True)
    arrays = initial(MLP)
    none = mlp.train(arrays, blobs(MLP), TASK, should_stop=lambda: True)
    assert (none.steps, none.examples, none.labelled, none.stopped) == (0, 0, 0, True)
    assert digest(none.arrays) == digest(arrays)


# ---------------------------------------------------------------- refused


def test_a_model_with_nan_is_refused(mlp: Trainer) -> None:
    arrays = initial(MLP)
    arrays["hidden1.weight"][0, 0] = np.nan
    for call in (
        lambda: mlp.train(arrays, blobs(MLP), TASK),
        lambda: mlp.train(initial(MLP), blobs(MLP), FEDMOBILE, teacher=arrays),
        lambda: mlp.evaluate(arrays, blobs(MLP)),
    ):
        with pytest.raises(RefusedUpdateError, match=r"hidden1.weight\[0, 0\] is nan"):
            call()


def test_a_model_of_another_width_is_refused(mlp: Trainer) -> None:
    with pytest.raises(RefusedUpdateError, match="has shape"):
        mlp.train(initial(MLP, 0.5), blobs(MLP), TASK)


def test_a_training_that_diverges_leaves_nothing_behind(mlp: Trainer) -> None:
    arrays, data = initial(MLP), blobs(MLP)
    good = mlp.train(arrays, data, TASK)
    far = TrainingData(data.inputs * np.float32(1e37), data.labels)
    with pytest.raises(RefusedUpdateError, match="training diverged: the loss is nan|inf in step"):
        mlp.train({n: a * np.float32(1e3) for n, a in arrays.items()}, far, TASK)
    assert digest(mlp.train(arrays, data, TASK).arrays) == digest(good.arrays)


def test_data_that_does_not_fit_is_refused(mlp: Trainer) -> None:
    with pytest.raises(RefusedUpdateError, match="other sensors"):
        mlp.train(initial(MLP), TrainingData(np.zeros((2, 5), np.float32), np.zeros(2, int)), TASK)
    with pytest.raises(RefusedUpdateError, match="label 3"):
        mlp.train(initial(MLP), TrainingData(np.zeros((1, 6), np.float32), np.array([3])), TASK)
    unlabelled = TrainingData(np.zeros((2, 6), np.float32), np.array([-1, -1]))
    with pytest.raises(UsageError, match="none of the 2 windows here has a label"):
        mlp.train(initial(MLP), unlabelled, TASK)
    assert mlp.train(initial(MLP), unlabelled, FEDMOBILE).labelled == 0
    with pytest.raises(UsageError, match="no window"):
        mlp.train(initial(MLP), empty_data((6,)), FEDMOBILE)


@pytest.mark.parametrize(
    "change",
    [{"epochs": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"learning_rate": -1.0}, {"seconds": -1}],
)
def test_a_task_out_of_range_is_refused(mlp: Trainer, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"the task's {next(iter(change))} is"):
        mlp.train(initial(MLP), blobs(MLP), replace(TASK, **change))


def test_settings_that_are_none(mlp: Trainer) -> None:
    with pytest.raises(FormatError, match="the task's settings: no setting 'tau'"):
        mlp.train(initial(MLP), blobs(MLP), replace(FEDMOBILE, settings='{"tau": 1}'))


# ---------------------------------------------------------------- FedMobile-style parts


def test_distillation_keeps_the_previous_model_s_opinion(mlp: Trainer) -> None:
    data = blobs(MLP, unlabelled=0.5)
    previous = mlp.train(initial(MLP), blobs(MLP), replace(TASK, epochs=30)).arrays
    swapped = TrainingData(data.inputs, np.where(data.labels < 0, -1, (data.labels + 1) % 3))

    def agreement(distillation: float) -> float:
        settings = FedMobileSettings(distillation=distillation, consistency=0.0)
        task = replace(FEDMOBILE, settings=settings.to_json(), epochs=12)
        now = mlp.train(copy_arrays(previous), swapped, task, teacher=previous).arrays
        same = mlp.logits(now, data.inputs).argmax(1) == mlp.logits(previous, data.inputs).argmax(1)
        return float(same.mean())

    assert agreement(0.0) < 0.5 < 0.9 < agreement(50.0)


def test_exemplars_are_trained_on(mlp: Trainer) -> None:
    data = blobs(MLP)
    known = data.subset(np.flatnonzero(data.labels != 2))
    exemplars = data.subset(np.flatnonzero(data.labels == 2)[:5])
    task = replace(FEDMOBILE, epochs=20)
    without = mlp.evaluate(mlp.train(initial(MLP), known, task).arrays, data)
    trained = mlp.train(initial(MLP), known, task, exemplars=exemplars)
    assert trained.labelled == len(known) + 5
    assert without.per_class_f1[2] == 0.0
    assert mlp.evaluate(trained.arrays, data).per_class_f1[2] > 0.8


def test_a_moving_teacher_differs_from_the_round_s(mlp: Trainer) -> None:
    data = blobs(MLP, unlabelled=0.7)
    found = [
        mlp.train(
            initial(MLP),
            data,
            replace(
                FEDMOBILE,
                epochs=15,
                settings=FedMobileSettings(
                    teacher=teacher, threshold=0.5, propagation=0.0
                ).to_json(),
            ),
        )
        for teacher in ("round", "ema")
    ]
    assert digest(found[0].arrays) != digest(found[1].arrays)
    assert found[1].confident > found[0].confident, "it becomes sure while the model learns"
