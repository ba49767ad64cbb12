"""Windows are refused at the door, with the place of what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.errors import RefusedUpdateError, UsageError
from penstock.federated.models.registry import ModelOptions
from penstock.federated.training.data import TrainingData, check_fits, empty_data

OPTIONS = ModelOptions("sensing-mlp", (3,), 4)


def windows(n: int = 4) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(3 * n, dtype=np.float32).reshape(n, 3)


def test_labelled_and_unlabelled_are_told_apart() -> None:
    data = TrainingData(windows(), np.array([2, -1, 0, -1]))
    assert data.labelled.tolist() == [0, 2]
    assert data.unlabelled.tolist() == [1, 3]
    assert len(data) == 4
    assert data.nbytes == 4 * 3 * 4 + 4 * 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named(value: float) -> None:
    inputs = windows()
    inputs[2, 1] = value
    with pytest.raises(UsageError, match=r"inputs\[2, 1\] is"):
        TrainingData(inputs, np.zeros(4, np.int64))


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (windows().astype(np.float64), np.zeros(4, np.int64), "inputs is float64"),
        (windows(), np.zeros(4, np.int32), "labels is int32"),
        (windows().tolist(), np.zeros(4, np.int64), "inputs is list"),
        (windows(), np.zeros(3, np.int64), "4 inputs but 3 labels"),
        (windows()[0], np.zeros(3, np.int64), "expected \\[n, ...\\]"),
        (windows(), np.array([0, 1, -2, 0]), "a label is -2"),
    ],
)
def test_what_is_no_training_data(inputs: Any, labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingData(inputs, labels)


def test_a_model_for_other_sensors_is_refused() -> None:
    data = TrainingData(np.zeros((2, 5), np.float32), np.zeros(2, np.int64))
    with pytest.raises(RefusedUpdateError, match=r"\(3,\).*\(5,\)"):
        check_fits(data, OPTIONS)


def test_a_label_beyond_the_classes_is_refused() -> None:
    check_fits(TrainingData(windows(), np.array([0, 3, -1, 1])), OPTIONS)
    with pytest.raises(RefusedUpdateError, match="label 4"):
        check_fits(TrainingData(windows(), np.array([0, 4, -1, 1])), OPTIONS)


def test_joining() -> None:
    data = TrainingData(windows(2), np.array([1, -1]))
    assert data.with_more(None) is data
    assert data.with_more(empty_data((3,))) is data
    both = data.with_more(TrainingData(windows(1), np.array([3])))
    assert both.labels.tolist() == [1, -1, 3]
    with pytest.raises(UsageError, match="cannot be joined"):
        data.with_more(TrainingData(np.zeros((1, 9), np.float32), np.array([0])))
