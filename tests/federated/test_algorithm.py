"""FedAvg, HeteroFL and FedRolex: rounds, missing devices, and a checkpoint that goes on alike."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest

from penstock.errors import FormatError, RefusedUpdateError
from penstock.federated.aggregation import Update
from penstock.federated.algorithm import Algorithm, FedAvg, FedRolex, HeteroFL
from penstock.federated.arrays import check_arrays, digest
from penstock.federated.models import model_spec
from tests.federated.sample_models import FEATURES, IMAGES, play_round, random_arrays

SPEC = model_spec(IMAGES)
FLEET = {"aa": 1.0, "bb": 0.75, "cc": 0.5625, "dd": 0.25}
ALGORITHMS = (FedAvg, HeteroFL, FedRolex)
play = partial(play_round, fleet=FLEET, noise=1.0)


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_every_device_gets_its_sub_model(kind: type[Algorithm]) -> None:
    algorithm = kind(SPEC, random_arrays(SPEC))
    algorithm.begin_round(4)
    for device, ratio in FLEET.items():
        sent = algorithm.send(device, ratio)
        assert sent.ratio == (1.0 if kind is FedAvg else ratio)
        check_arrays(sent.arrays, SPEC.at(sent.ratio).by_name(), "the server")
        assert digest(algorithm.send(device, ratio).arrays) == digest(sent.arrays)
        sent.arrays["conv1.bias"][...] = 7  # a copy: nobody else may see this
    assert not (algorithm.arrays["conv1.bias"] == 7).any()


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_the_order_of_arrival_changes_nothing(kind: type[Algorithm]) -> None:
    results = set()
    for seed in range(3):
        devices = list(FLEET)
        random.Random(seed).shuffle(devices)
        algorithm = kind(SPEC, random_arrays(SPEC))
        for number in (1, 2):
            play(algorithm, number, devices)
        results.add(digest(algorithm.arrays))
    assert len(results) == 1


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_a_round_without_answers_keeps_the_model(kind: type[Algorithm]) -> None:
    algorithm = kind(SPEC, random_arrays(SPEC))
    play(algorithm, 1, [])
    assert digest(algorithm.arrays) == digest(random_arrays(SPEC)) and algorithm.round_number == 1


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_a_restored_run_goes_on_alike(kind: type[Algorithm]) -> None:
    through = kind(SPEC, random_arrays(SPEC))
    play(through, 1, ["aa", "cc"])
    state = through.state()
    resumed = kind(SPEC, random_arrays(SPEC, seed=5))
    resumed.restore(state)
    for algorithm in (through, resumed):
        play(algorithm, 2, ["dd", "bb"])
    assert digest(resumed.state()) == digest(through.state())


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_a_refused_update_leaves_the_model(kind: type[Algorithm]) -> None:
    algorithm = kind(SPEC, random_arrays(SPEC))
    algorithm.begin_round(1)
    sent = algorithm.send("aa", 1.0)
    sent.arrays["classifier.bias"][0] = np.inf
    with pytest.raises(RefusedUpdateError, match="aa"):
        algorithm.end_round([Update("aa", sent.arrays, sent.channels, 1)])
    assert digest(algorithm.arrays) == digest(random_arrays(SPEC))


def test_a_broken_checkpoint_is_refused_and_changes_nothing() -> None:
    algorithm = HeteroFL(SPEC, random_arrays(SPEC))
    state = algorithm.state()
    other = HeteroFL(model_spec(FEATURES), random_arrays(model_spec(FEATURES))).state()
    short = {name: array for name, array in state.items() if name != "global/conv1.bias"}
    for broken in (
        {},
        other,
        short,
        state | {"global/conv1.bias": np.ones(4, np.float32)},
        state | {"global/unknown": np.ones(4, np.float32)},
        state | {"round_number": np.array([1, 2], np.int64)},
        state | {"round_number": np.array(-1, np.int64)},
        state | {"round_number": np.array("x")},
    ):
        with pytest.raises(FormatError, match="checkpoint"):
            algorithm.restore(broken)
    assert digest(algorithm.state()) == digest(state)


def test_an_initial_model_of_another_shape_is_refused() -> None:
    with pytest.raises(RefusedUpdateError, match="the initial model"):
        FedAvg(SPEC, random_arrays(SPEC.at(0.5)))
