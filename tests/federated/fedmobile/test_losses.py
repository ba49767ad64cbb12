"""Losses and their gradients against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from penstock.federated.fedmobile.losses import (  # noqa: E402
    alignment,
    consistency_loss,
    distillation_loss,
    label_prior,
    labelled_loss,
)

Values = NDArray[np.float64]


def softmax(logits: Values) -> Values:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Values = powers / powers.sum(axis=1, keepdims=True)
    return found


def random_logits(seed: int, n: int = 7, classes: int = 5, scale: float = 2.0) -> Values:
    return scale * np.random.default_rng(seed).normal(size=(n, classes))


def with_gradient(values: Values) -> Any:
    return torch.tensor(values, requires_grad=True)


def test_labelled_loss() -> None:
    logits = random_logits(0)
    labels = np.array([0, 1, 2, 3, 4, 0, 1])
    given = with_gradient(logits)
    loss = labelled_loss(given, torch.tensor(labels))
    p = softmax(logits)
    assert loss.item() == pytest.approx(-np.log(p[np.arange(7), labels]).sum())
    loss.backward()  # type: ignore[no-untyped-call]
    assert given.grad.numpy() == pytest.approx(p - np.eye(5)[labels])


def test_calibration_does_not_push_a_class_without_labels_as_far_down() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    prior = label_prior(labels, 3, 1.0)
    assert prior.exp().tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert not label_prior(labels, 3, 0.0).any()
    gradients = []
    for adjustment in (None, prior):
        logits = torch.zeros(4, 3, requires_grad=True)
        labelled_loss(logits, labels, adjustment).backward()  # type: ignore[no-untyped-call]
        gradients.append(logits.grad[:, 2].sum().item())
    assert 0 < gradients[1] < 0.5 * gradients[0], "class 2 has no label here"


def test_consistency_counts_only_what_the_teacher_is_sure_of() -> None:
    teacher, strong = random_logits(1, scale=6), random_logits(2)
    of_teacher, given = with_gradient(teacher), with_gradient(strong)
    loss, sure = consistency_loss(of_teacher, given, 0.8)
    p_teacher, p = softmax(teacher), softmax(strong)
    want_sure = p_teacher.max(axis=1) >= 0.8
    assert 0 < want_sure.sum() < 7, "the case must hold both kinds"
    assert sure.tolist() == want_sure.tolist()
    labels = p_teacher.argmax(axis=1)
    each = -np.log(p[np.arange(7), labels])
    assert loss.item() == pytest.approx((each * want_sure).sum())
    loss.backward()  # type: ignore[no-untyped-call]
    want = (p - np.eye(5)[labels]) * want_sure[:, None]
    assert given.grad.numpy() == pytest.approx(want)
    assert of_teacher.grad is None, "no gradient enters the teacher"


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation(temperature: float) -> None:
    previous, now = random_logits(3), random_logits(4)
    of_previous, given = with_gradient(previous), with_gradient(now)
    loss = distillation_loss(of_previous, given, temperature)
    p, q = softmax(previous / temperature), softmax(now / temperature)
    assert loss.item() == pytest.approx(temperature**2 * (p * np.log(p / q)).sum())
    loss.backward()  # type: ignore[no-untyped-call]
    assert given.grad.numpy() == pytest.approx(temperature * (q - p))
    assert of_previous.grad is None
    assert distillation_loss(given, given, temperature).item() == pytest.approx(0, abs=1e-12)


def test_alignment_moves_the_teacher_to_the_labels() -> None:
    logits = random_logits(5, n=40) + np.array([4.0, 0, 0, 0, 0])  # all windows are of class 0
    labels = np.array([1, 1, 1, 2])
    shift = alignment(torch.tensor(labels), torch.tensor(logits), 1.0).numpy()
    wanted = np.array([1, 4, 2, 1, 1]) / 9
    seen = np.maximum(softmax(logits).mean(axis=0), 1e-3)
    assert shift == pytest.approx(np.log(wanted / seen))
    before, after = softmax(logits).mean(axis=0), softmax(logits + shift).mean(axis=0)
    assert after[0] < 0.5 * before[0]
    assert after[1] > 3 * before[1]
    none = alignment(torch.tensor(labels), torch.tensor(logits), 0.0)
    assert not none.any()
    unlabelled = alignment(torch.zeros(0, dtype=torch.int64), torch.tensor(logits), 0.5)
    assert not unlabelled.any(), "no label says nothing of the classes"
