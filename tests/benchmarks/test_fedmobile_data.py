"""The stream of the FedMobile-style benchmark, on made-up windows that name their user and row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.fedmobile_data import CHUNKS, DEVICES, FEATURES, PUBLIC_USERS, make_stream, turned
from penstock.federated.training.data import UNLABELLED, TrainingData

USERS, EACH = 36, 40
users = np.repeat(np.arange(USERS), EACH)
classes = np.tile(np.arange(EACH) % 6, USERS)
windows = np.zeros((USERS * EACH, FEATURES), np.float32)
windows[:, 33:36] = 1 + users[:, None]  # the times between peaks of x, y and z: no sensor changes
windows[:, 20:30] = windows[:, :10] = windows[:, 10:20] = np.arange(len(users))[:, None]  # the row


def rows_of(data: TrainingData) -> set[int]:
    return set(data.inputs[:, 0].astype(int))


def users_of(data: TrainingData) -> set[int]:
    return {int(row) // EACH for row in rows_of(data)}


def test_no_user_is_in_two_places() -> None:
    stream = make_stream(windows, classes, users, 0)
    groups = [users_of(stream.public)] + [users_of(d) for c in stream.devices for d in c]
    assert [len(group) for group in groups] == [PUBLIC_USERS] + [1] * (CHUNKS * DEVICES)
    assert len(set().union(*groups)) == sum(len(group) for group in groups)


def held_and_trained(seed: int) -> Iterator[tuple[set[int], set[int], set[int]]]:
    stream = make_stream(windows, classes, users, seed)
    trained = [rows_of(stream.public)]
    trained += [set().union(*(rows_of(d) for d in chunk)) for chunk in stream.devices]
    for own, validation, test in zip(trained, stream.validation, stream.test, strict=True):
        yield own, rows_of(validation), rows_of(test)


def test_held_out_windows_are_never_trained_on() -> None:
    tests: list[set[int]] = []
    for seed in (0, 1):
        parts = list(held_and_trained(seed))
        for own, validation, test in parts:
            assert not own & validation
            assert not own & test
            assert not validation & test
            assert len(test) == len({row // EACH for row in test}) * EACH // 4
        tests.append(set().union(*(test for _, _, test in parts)))
    assert tests[0] == tests[1], "the test windows are those of every seed"


def test_labels() -> None:
    stream = make_stream(windows, classes, users, 3)
    for some, every in zip(stream.devices, stream.all_labels, strict=True):
        for data, whole in zip(some, every, strict=True):
            known = data.labelled
            assert len(known) == 1  # 5 % of 26 windows
            assert (data.labels[known] == whole.labels[known]).all()
            assert (data.inputs == whole.inputs).all()
            assert (whole.labels != UNLABELLED).all()
            assert (classes[data.inputs[:, 0].astype(int)] == whole.labels).all()


def test_a_turned_sensor() -> None:
    seen = np.random.default_rng(0).normal(size=(4, FEATURES)).astype(np.float32)
    before = seen.copy()
    assert (turned((0, 1, 2), ())(seen) == seen).all()
    swapped = turned((1, 0, 2), ())
    assert (swapped(swapped(seen)) == seen).all()
    assert (swapped(seen)[:, :10] == seen[:, 10:20]).all()
    assert (swapped(seen)[:, 30] == seen[:, 31]).all()
    third = turned((1, 2, 0), ())
    assert (third(third(third(seen))) == seen).all()
    down = turned((0, 1, 2), (0, 1))(seen)
    assert (down[:, :10] == seen[:, 9::-1]).all()
    assert down[:, 30:33] == pytest.approx(seen[:, 30:33] * np.array([-1, -1, 1]))
    assert (down[:, 33:] == seen[:, 33:]).all()
    assert (seen == before).all()
