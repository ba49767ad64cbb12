"""The whole local loss against NumPy: same views, own forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from penstock.errors import UsageError  # noqa: E402
from penstock.federated.fedmobile import propagation  # noqa: E402
from penstock.federated.fedmobile.local_update import LEAST_REACHED, FedMobileUpdate  # noqa: E402
from penstock.federated.fedmobile.propagation import (  # noqa: E402
    MOST,
    MOST_BYTES,
    never,
    propagated,
    windows_within,
)
from penstock.federated.fedmobile.settings import FedMobileSettings  # noqa: E402
from penstock.federated.models.registry import ModelOptions, build_module  # noqa: E402
from penstock.federated.training.augmentations import strong_view, weak_view  # noqa: E402
from penstock.federated.training.batches import Batch  # noqa: E402
from penstock.federated.training.data import TrainingData, empty_data  # noqa: E402

OPTIONS = ModelOptions("sensing-mlp", (5,), 3, (8,))


def module(seed: int, scale: float = 1.0) -> Any:
    torch.manual_seed(seed)
    built = build_module(OPTIONS)
    with torch.no_grad():
        built.classifier.weight.mul_(scale)  # type: ignore[operator, union-attr]
    return built


def forward(net: Any, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    w = {name: t.numpy().astype(np.float64) for name, t in net.state_dict().items()}
    hidden = np.maximum(inputs @ w["hidden1.weight"].T + w["hidden1.bias"], 0)
    found: NDArray[np.float64] = hidden @ w["classifier.weight"].T + w["classifier.bias"]
    return found


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


@pytest.fixture
def data() -> TrainingData:
    rng = np.random.default_rng(3)
    labels = np.array([0, -1, 2, -1, -1, 1, -1, -1, -1])
    return TrainingData(rng.normal(size=(9, 5)).astype(np.float32), labels)


@pytest.mark.parametrize("augment", [True, False])
def test_the_sum_of_three_losses(data: TrainingData, augment: bool) -> None:
    student, teacher, previous = module(0), module(1, scale=8.0), module(2)
    settings = FedMobileSettings(
        consistency=0.7,
        threshold=0.8,
        distillation=1.3,
        temperature=3.0,
        augment=augment,
        alignment=0.5,
        calibration=0.4,
        propagation=0.6,
    )
    update = FedMobileUpdate(
        student, data, settings, epochs=1, batch=4, teacher=teacher, previous=previous
    )
    update.prepare(4, 0, never)
    batch = Batch(data.labelled, data.unlabelled)
    with torch.no_grad():
        found = update.loss(batch, batch, np.random.default_rng(11)).item()

    rng = np.random.default_rng(11)  # the views in the order in which they are drawn
    labelled, unlabelled = data.inputs[data.labelled], data.inputs[data.unlabelled]
    weak = weak_view(unlabelled, rng)
    seen = weak_view(labelled, rng) if augment else labelled
    strong = strong_view(unlabelled, rng)
    counts = np.bincount(data.labels[data.labelled], minlength=3) + 1
    prior = 0.4 * np.log(counts / counts.sum())
    guessed = log_softmax(forward(student, seen) + prior)
    ce = -guessed[np.arange(3), data.labels[data.labelled]].mean()
    usual = np.exp(log_softmax(forward(teacher, unlabelled))).mean(axis=0)
    shift = 0.5 * np.log(counts / counts.sum() / usual)
    reached = propagated(data.inputs, data.labels, 3)[data.unlabelled]
    shift = shift + 0.6 * np.log(np.maximum(reached, LEAST_REACHED))
    p_teacher = np.exp(log_softmax(forward(teacher, weak) + shift))
    sure = p_teacher.max(axis=1) >= 0.8
    assert 0 < sure.sum() < 6, "the case must hold both kinds"
    picked = log_softmax(forward(student, strong))[np.arange(6), p_teacher.argmax(axis=1)]
    both = np.concatenate([seen, weak])
    before, now = (log_softmax(forward(net, both) / 3.0) for net in (previous, student))
    kl = 9.0 * (np.exp(before) * (before - now)).sum(axis=1).mean()
    want = ce - 0.7 * (picked * sure).sum() / 6 + 1.3 * kl
    assert found == pytest.approx(want, rel=1e-4)
    assert update.confident() == sure.sum()


def test_neighbours_do_not_speak_of_a_class_without_a_label(data: TrainingData) -> None:
    """Where labels 0 and 1 lead a window to 0 or 1, class 2 stays between them."""
    labels = np.where(data.labels == 2, -1, data.labels)
    settings = FedMobileSettings(propagation=1.0, alignment=0.0)
    update = FedMobileUpdate(
        module(0), TrainingData(data.inputs, labels), settings, epochs=1, batch=4,
        teacher=module(1), previous=None,
    )  # fmt: skip
    update.prepare(4, 0, never)
    shift = update._shift
    assert shift is not None and (shift[:, 0] != shift[:, 1]).any()
    assert torch.allclose(shift[:, 2], shift[:, :2].mean(dim=1))


def test_what_comes_before_the_steps_keeps_to_its_room_and_stops(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def watched(windows: Any, labels: Any, classes: int, most: int, stop: Any) -> Any:
        asked.append(most)
        return propagated(windows, labels, classes, most, stop)

    monkeypatch.setattr(propagation, "propagated", watched)
    teacher, seen = module(1), []
    teacher.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    settings = FedMobileSettings(propagation=1.0)
    update = FedMobileUpdate(
        module(0), data, settings, epochs=1, batch=4, teacher=teacher, previous=None
    )
    assert not seen and not asked, "nothing before the budget was checked"
    update.prepare(4, 0, never)
    assert seen == [4, 2] and asked.pop() == windows_within(MOST_BYTES, 5, 3) == MOST
    update.prepare(4, 7 * 2300, never)
    assert asked.pop() == 7
    whole = update._shift
    assert whole is not None
    seen.clear()
    update.prepare(4, 0, lambda: True)
    assert not seen and not asked and update._shift is None
    assert update.extra_bytes() >= sum(
        t.nbytes for t in [*teacher.state_dict().values(), whole, whole]
    )


def test_parts_without_one_pool_add_up(data: TrainingData) -> None:
    settings = FedMobileSettings(consistency=0.0, augment=False)
    update = FedMobileUpdate(
        module(0), data, settings, epochs=1, batch=4, teacher=None, previous=None
    )
    whole = Batch(data.labelled, data.unlabelled)
    with torch.no_grad():
        rng = np.random.default_rng(0)
        once = update.loss(whole, whole, rng).item()
        parts = sum(update.loss(part, whole, rng).item() for part in whole.parts(2))
    assert parts == pytest.approx(once, rel=1e-5)


def test_unlabelled_windows_without_a_use_stay_out(data: TrainingData) -> None:
    settings = FedMobileSettings()
    rng = np.random.default_rng(0)
    for teacher, used in ((None, 0), (module(1), 6)):
        update = FedMobileUpdate(
            module(0), data, settings, epochs=1, batch=4, teacher=teacher, previous=None
        )
        assert sum(len(b.unlabelled) for b in update.batches(rng)) == used


def test_a_moving_teacher(data: TrainingData) -> None:
    student, teacher = module(0), module(1)
    start = teacher.classifier.bias.clone()
    settings = FedMobileSettings(teacher="ema", ema_decay=0.75)
    FedMobileUpdate(
        student, data, settings, epochs=1, batch=4, teacher=teacher, previous=None
    ).step_done()
    want = 0.75 * start + 0.25 * student.classifier.bias
    assert torch.allclose(teacher.classifier.bias, want)


def test_no_window_at_all() -> None:
    with pytest.raises(UsageError, match="no window"):
        FedMobileUpdate(
            module(0),
            empty_data((5,)),
            FedMobileSettings(),
            epochs=1,
            batch=4,
            teacher=None,
            previous=None,
        )
