"""WISDM as a stream: a model ships, then devices keep learning through four chunks of time.

WISDM v1.1 (Kwapisz et al., 2011) has 36 users and windows of 43 standardised features, in the order
of its ARFF file: ten histogram bins of each axis, then for x, y and z the mean, the time between
peaks, the absolute deviation and the standard deviation, and the resultant.

- Chunk 0 is the factory: eight users, every label, the sensor as recorded. All rows of the table
  start from the same model, trained on these windows. Rows with exemplars have five a class of
  them, which come with the app; the other devices never see them.
- In chunk 1 to 4 each of seven devices is worn by another user (no user is in two chunks) and
  mounted another way, as `SENSORS` says; 5 % of a wearer's windows have a label, drawn at random.

`scratch` leaves the factory out: the devices begin with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.errors import FormatError
from penstock.federated.training.data import UNLABELLED, TrainingData

CLASSES, FEATURES, DEVICES, CHUNKS, PUBLIC_USERS = 6, 43, 7, 4, 8
TEST_SHARE, VALIDATION_SHARE, LABELLED_SHARE = 0.25, 0.15, 0.05
TEST_SEED = 2026  # the test windows are the same in every run, and in tuning never used
BINS, AFTER_BINS = 10, 30

Windows = NDArray[np.float32]
Sensor = Callable[[Windows], Windows]


def turned(order: tuple[int, int, int], flipped: tuple[int, ...]) -> Sensor:
    """A sensor mounted another way: its axis i is the body's axis `order[i]`, and points the other
    way where i is in `flipped` (its bins run backwards, its mean changes sign)."""

    def sensor(windows: Windows) -> Windows:
        changed = windows.copy()
        for axis, source in enumerate(order):
            bins = windows[:, source * BINS : (source + 1) * BINS]
            changed[:, axis * BINS : (axis + 1) * BINS] = bins[:, :: -1 if axis in flipped else 1]
            for first in range(AFTER_BINS, FEATURES - 1, 3):
                changed[:, first + axis] = windows[:, first + source]
            if axis in flipped:
                changed[:, AFTER_BINS + axis] *= -1
        return changed

    return sensor


def worn(sensor: Sensor) -> Sensor:
    """And worn out: deviations and resultant 30 % weaker and half a standard deviation lower."""

    def changed(windows: Windows) -> Windows:
        seen = sensor(windows)
        seen[:, AFTER_BINS + 6 :] = 0.7 * seen[:, AFTER_BINS + 6 :] - 0.5
        return seen

    return changed


SENSORS: tuple[Sensor, ...] = (
    turned((1, 0, 2), ()),  # x and y change places
    turned((1, 2, 0), ()),  # x, y and z move on by one
    turned((0, 1, 2), (0, 1)),  # upside down
    worn(turned((2, 1, 0), (1,))),  # x and z change places, y points down
)


@dataclass(frozen=True)
class Stream:
    """What one seed makes of the data.

    Attributes:
        public: the factory's windows, all labelled.
        devices: [chunk from 1][device]: windows to train on, 5 % of them labelled.
        all_labels: the same windows with every label: an upper bound's.
        validation: [chunk from 0]: windows of the same users for tuning; test: for the table.
    """

    public: TrainingData
    devices: list[list[TrainingData]]
    all_labels: list[list[TrainingData]]
    validation: list[TrainingData]
    test: list[TrainingData]


def read_wisdm(folder: Path) -> tuple[Windows, NDArray[np.int64], NDArray[np.int64]]:
    """Windows [n, 43], classes and users.

    Raises:
        FormatError: not the table of 46 columns.
    """
    rows = np.concatenate(
        [np.loadtxt(folder / name, delimiter=",", ndmin=2) for name in ("train.txt", "val.txt")]
    )
    if rows.shape[1] != FEATURES + 3:
        raise FormatError(f"{folder}: {rows.shape[1]} columns, expected uid, class, user and 43")
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    return (
        np.ascontiguousarray(rows[:, 3:], np.float32),
        rows[:, 1].astype(np.int64),
        rows[:, 2].astype(np.int64),
    )


def make_stream(
    windows: Windows, classes: NDArray[np.int64], users: NDArray[np.int64], seed: int
) -> Stream:
    """Groups of users, held-out windows and labels; the seed decides all but the test windows."""
    rng = np.random.default_rng([seed, 5])
    names = rng.permutation(np.unique(users))
    worn_by = names[PUBLIC_USERS : PUBLIC_USERS + CHUNKS * DEVICES].reshape(CHUNKS, DEVICES)
    validation: list[TrainingData] = []
    test: list[TrainingData] = []

    def split(group: NDArray[np.int64], sensor: Sensor) -> list[NDArray[np.intp]]:
        """Windows of each user to train on; held-out ones are kept as seen by the sensor."""
        train, validate, tests = [], [], []
        for user in group:
            mine = np.flatnonzero(users == user)
            mine = np.random.default_rng([TEST_SEED, int(user)]).permutation(mine)
            first = max(1, round(TEST_SHARE * len(mine)))
            tests.append(mine[:first])
            mine = rng.permutation(mine[first:])
            second = round(VALIDATION_SHARE * len(mine))
            validate.append(mine[:second])
            train.append(mine[second:])
        for held, into in ((validate, validation), (tests, test)):
            where = np.concatenate(held)
            into.append(TrainingData(sensor(windows[where]), classes[where]))
        return train

    public = np.concatenate(split(names[:PUBLIC_USERS], turned((0, 1, 2), ())))
    devices, all_labels = [], []
    for group, sensor in zip(worn_by, SENSORS, strict=True):
        some, every = [], []
        for mine in split(group, sensor):
            labels = np.full(len(mine), UNLABELLED)
            known = max(1, round(LABELLED_SHARE * len(mine)))
            labels[:known] = classes[mine[:known]]
            seen = sensor(windows[mine])
            some.append(TrainingData(seen, labels))
            every.append(TrainingData(seen, classes[mine]))
        devices.append(some)
        all_labels.append(every)
    factory = TrainingData(windows[public], classes[public])
    return Stream(factory, devices, all_labels, validation, test)
