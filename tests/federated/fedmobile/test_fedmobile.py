"""The server's side: chunks, teachers, weights, and a checkpoint that holds them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.errors import FormatError, UsageError
from penstock.federated.aggregation import Update
from penstock.federated.arrays import Arrays, digest
from penstock.federated.fedmobile.fedmobile import FedMobile
from penstock.federated.fedmobile.settings import FedMobileSettings
from penstock.federated.models.registry import ModelOptions, model_spec
from penstock.federated.protocol import TrainResult

SPEC = model_spec(ModelOptions("sensing-mlp", (5,), 3, (8, 4)))


def arrays(value: float) -> Arrays:
    return {t.name: np.full(t.shape, value, np.float32) for t in SPEC}


def one_round(algorithm: FedMobile, number: int, value: float) -> None:
    algorithm.begin_round(number)
    sent = algorithm.send("a", 1.0)
    trained = {name: np.full_like(array, value) for name, array in sent.arrays.items()}
    algorithm.end_round([Update("a", trained, sent.channels, 2.0)])


def test_the_teacher_is_the_model_at_the_end_of_the_previous_chunk() -> None:
    algorithm = FedMobile(SPEC, arrays(0.0))
    algorithm.begin_chunk(0)
    one_round(algorithm, 1, 1.0)
    assert algorithm.teacher(1.0) is None
    algorithm.begin_chunk(1)
    first_sent = algorithm.send("a", 0.5).arrays
    one_round(algorithm, 2, 2.0)
    algorithm.begin_chunk(1)  # said again in every round
    one_round(algorithm, 3, 3.0)
    teacher = algorithm.teacher(1.0)
    assert teacher is not None
    assert digest(teacher) == digest(arrays(1.0))
    narrow = algorithm.teacher(0.5)
    assert narrow is not None
    assert digest(narrow) == digest(first_sent), "what a device gets in the chunk's first round"
    with pytest.raises(UsageError, match="chunk 0 comes after chunk 1"):
        algorithm.begin_chunk(0)


def test_weight_is_labelled_and_a_share_of_confident() -> None:
    algorithm = FedMobile(SPEC, arrays(0.0), FedMobileSettings(confident_weight=0.25))
    result = TrainResult("a", "0" * 16, 1, examples=60, labelled=4, confident=40)
    assert algorithm.weight(result) == 4 + 0.25 * 40
    nothing = replace(result, labelled=0, confident=0)
    assert 0 < algorithm.weight(nothing) < 0.01


def test_a_checkpoint_goes_on_where_it_was() -> None:
    algorithm = FedMobile(SPEC, arrays(0.0))
    one_round(algorithm, 1, 1.0)
    without = algorithm.state()
    algorithm.begin_chunk(1)
    one_round(algorithm, 2, 2.0)
    state = algorithm.state()
    other = FedMobile(SPEC, arrays(9.0))
    other.restore(state)
    assert (other.chunk, other.round_number) == (1, 2)
    assert digest(other.state()) == digest(state)
    other.restore(without)
    assert other.teacher(1.0) is None


def test_a_foreign_checkpoint_changes_nothing() -> None:
    algorithm = FedMobile(SPEC, arrays(0.0))
    one_round(algorithm, 1, 1.0)
    algorithm.begin_chunk(1)
    state = algorithm.state()
    other = FedMobile(SPEC, arrays(5.0))
    before = digest(other.state())
    for name, value in (
        ("chunk", None),
        ("chunk", np.array(-1)),
        ("chunk", np.array(0.5)),
        ("teacher/classifier.bias", None),
        ("teacher/classifier.bias", np.full(3, np.nan, np.float32)),
        ("global/classifier.bias", np.zeros(4, np.float32)),
    ):
        broken = {n: a for n, a in state.items() if n != name}
        if value is not None:
            broken[name] = value
        with pytest.raises(FormatError):
            other.restore(broken)
        assert digest(other.state()) == before, name
