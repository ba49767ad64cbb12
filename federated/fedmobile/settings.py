"""What a FedMobile-style federation can set; it travels with every task as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from penstock.errors import FormatError, UsageError

TEACHERS = ("round", "ema")
_RANGES = {
    "consistency": (0.0, 1e3),
    "threshold": (0.0, 1.0),
    "distillation": (0.0, 1e3),
    "temperature": (0.1, 100.0),
    "ema_decay": (0.0, 1.0),
    "alignment": (0.0, 1.0),
    "calibration": (0.0, 1.0),
    "propagation": (0.0, 10.0),
    "unlabelled_per_labelled": (0, 1024),
    "confident_weight": (0.0, 1.0),
    "exemplars_per_class": (0, 10_000),
}


@dataclass(frozen=True)
class FedMobileSettings:
    """Frozen settings.

    Attributes:
        consistency: weight of the loss on unlabelled windows; 0 switches it off.
        threshold: least probability of a teacher's best class for its label to count.
        teacher: who labels: "round", the global model as received; "ema", a moving mean of the
            model in training.
        ema_decay: of that mean, a step.
        alignment: how far the teacher's probabilities are moved towards the share of classes among
            the device's labels, before the threshold; 0: not at all. Without it a teacher trained
            on few labels calls nearly all windows by the most common class.
        calibration: how far the labelled loss makes up for classes that this device has few labels
            of; 0: not at all.
        propagation: how much the labels of alike windows of this device count beside the teacher's
            opinion, for windows of features; 0: not at all.
        distillation: weight of staying close to the model of the previous chunk; 0: off.
        temperature: T of the distillation.
        unlabelled_per_labelled: unlabelled windows in a step for each labelled one of a batch.
        augment: sensor noise, scaling and masking for labelled windows too.
        confident_weight: c in a device's weight, labelled + c * confident.
        exemplars_per_class: labelled windows of each class kept from past chunks; 0: none, so that
            all raw data older than the chunk goes.

    Raises:
        UsageError: a value is out of its range.
    """

    consistency: float = 1.0
    threshold: float = 0.9
    teacher: str = "ema"
    ema_decay: float = 0.95
    alignment: float = 1.0
    calibration: float = 1.0
    propagation: float = 1.0
    distillation: float = 1.0
    temperature: float = 2.0
    unlabelled_per_labelled: int = 4
    augment: bool = True
    confident_weight: float = 0.5
    exemplars_per_class: int = 0

    def __post_init__(self) -> None:
        if self.teacher not in TEACHERS:
            raise UsageError(
                f"fedmobile: teacher is {self.teacher!r}, expected one of {', '.join(TEACHERS)}"
            )
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= most):
                raise UsageError(f"fedmobile: {name} is {value}, expected {least} to {most}")

    def to_json(self) -> str:
        """One line, for a task."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, source: str = "fedmobile settings") -> FedMobileSettings:
        """Back from `to_json`; what is not named keeps its default.

        Raises:
            FormatError: not an object, a name that is unknown, a value of another type.
            UsageError: a value is out of its range.
        """
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{source}: not JSON: {error}") from error
        if not isinstance(given, dict):
            raise FormatError(f"{source}: expected an object, not a {type(given).__name__}")
        types = {entry.name: str(entry.type) for entry in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in types:
                raise FormatError(f"{source}: no setting {name!r}; there are {', '.join(types)}")
            if types[name] == "float" and type(value) is int:
                value = float(value)
            if type(value).__name__ != types[name]:
                raise FormatError(
                    f"{source}: {name} is a {type(value).__name__}, expected {types[name]}"
                )
            values[name] = value
        return cls(**values)
