"""The rows of the FedMobile-style table: each trains through the whole stream of one seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from benchmarks.fedmobile_baselines import FedMatch, SemiFL, Steps
from benchmarks.fedmobile_data import CLASSES, FEATURES, Stream
from penstock.federated.aggregation import Update
from penstock.federated.arrays import Arrays
from penstock.federated.fedmobile.exemplars import select_exemplars
from penstock.federated.fedmobile.fedmobile import FedMobile
from penstock.federated.fedmobile.settings import FedMobileSettings
from penstock.federated.models.registry import ModelOptions, build_module
from penstock.federated.protocol import TrainResult, TrainTask
from penstock.federated.training.data import TrainingData
from penstock.federated.training.trainer import Trained, Trainer

MODEL = ModelOptions("sensing-mlp", (FEATURES,), CLASSES)
FACTORY_EPOCHS, FACTORY_BATCH, FACTORY_RATE = 40, 32, 1e-3
EXEMPLARS = 5  # of each class and chunk, of each device
# Of local training; chosen on the validation windows of seeds 100 to 104 (docs/fedmobile.md).
EPOCHS, BATCH, RATE, UNLABELLED = 3, 8, 6e-4, 4
LABELLED_EPOCHS, LABELLED_RATE, BASELINE_RATE = 8, 1e-4, 3e-4
OURS = FedMobileSettings(unlabelled_per_labelled=UNLABELLED)
WITH_EXEMPLARS = replace(  # they hold the old chunks, so that more can be learned from new ones
    OURS, exemplars_per_class=EXEMPLARS, propagation=2.0, distillation=0.5
)
LABELLED_ONLY = FedMobileSettings(  # as FedAvg, but with the exemplars that ours keeps
    consistency=0.0, distillation=0.0, calibration=0.0, augment=False, exemplars_per_class=EXEMPLARS
)
TASK = TrainTask(
    run="0" * 16,
    round_number=0,
    chunk=0,
    algorithm="fedmobile",
    model=MODEL.to_json(),
    ratio=1.0,
    settings="{}",
    epochs=EPOCHS,
    batch=BATCH,
    learning_rate=RATE,
    seed=0,
    seconds=0.0,
)


@dataclass
class Outcome:
    """One row and seed.

    Attributes:
        macro_f1, accuracy: [end of chunk][chunk], in percent; row 0 is before any training.
        device_seconds: of one device in one chunk, mean over devices.
        held_bytes: windows, teachers and the model that a device keeps in the last chunk.
    """

    macro_f1: list[list[float]] = field(default_factory=list)
    accuracy: list[list[float]] = field(default_factory=list)
    device_seconds: list[float] = field(default_factory=list)
    held_bytes: int = 0


@dataclass(frozen=True)
class Setting:
    """What all rows of one run share.

    Attributes:
        stream, start: the data, and the model that all begin with.
        rounds: in each chunk.
        held_out: `stream.validation` or `stream.test`.
    """

    stream: Stream
    start: Arrays
    rounds: int
    seed: int
    held_out: Sequence[TrainingData]
    trainer: Trainer

    def score(self, arrays: Arrays, into: Outcome) -> None:
        """The model on every chunk's held-out windows."""
        found = [self.trainer.evaluate(arrays, data) for data in self.held_out]
        into.macro_f1.append([100 * e.macro_f1 for e in found])
        into.accuracy.append([100 * e.accuracy for e in found])

    def seed_of(self, *numbers: int) -> int:
        """Of one device in one round."""
        return int(np.random.SeedSequence([self.seed, *numbers]).generate_state(1)[0])


def initial(seed: int) -> Arrays:
    """Random weights."""
    torch.manual_seed(seed)
    return {n: t.numpy().copy() for n, t in build_module(MODEL).state_dict().items()}


def factory_model(stream: Stream, seed: int, trainer: Trainer) -> Arrays:
    """Trained on the factory's windows with every label."""
    return trainer.train(initial(seed), stream.public, factory_task(seed)).arrays


def factory_task(seed: int) -> TrainTask:
    """Long training of one place that has every label."""
    return replace(
        TASK,
        algorithm="fedavg",
        epochs=FACTORY_EPOCHS,
        batch=FACTORY_BATCH,
        learning_rate=FACTORY_RATE,
        seed=seed,
    )


def as_shipped(setting: Setting) -> Outcome:
    """Nobody trains."""
    outcome = Outcome()
    for _ in range(len(setting.stream.devices) + 1):
        setting.score(setting.start, outcome)
    outcome.device_seconds = [0.0] * len(setting.stream.devices)
    outcome.held_bytes = _bytes(setting.start)
    return outcome


def penstock_row(
    settings: FedMobileSettings | None,
    *,
    epochs: int = EPOCHS,
    rate: float = RATE,
    keep_everything: bool = False,
) -> Callable[[Setting], Outcome]:
    """Rows that run Penstock's own code: the trainer and the server's algorithm.

    Args:
        settings: of FedMobile-style learning; None: labelled-only FedAvg.
        keep_everything: devices keep all windows of all chunks, and every chunk begins with the
            model that was shipped.
    """

    def row(setting: Setting) -> Outcome:
        chosen = settings or FedMobileSettings()
        outcome, trainer = Outcome(), setting.trainer
        server = FedMobile(trainer.spec, setting.start, chosen)
        setting.score(server.arrays, outcome)
        exemplars: list[TrainingData | None] = [None] * len(setting.stream.devices[0])
        kept: list[TrainingData | None] = list(exemplars)
        if chosen.exemplars_per_class:  # the app brings some of the factory's
            shipped = _with_exemplars(
                None, setting.stream.public, setting.start, trainer, chosen.exemplars_per_class
            )
            exemplars = [shipped] * len(exemplars)
        number = 0
        for chunk, fresh in enumerate(setting.stream.devices, 1):
            devices = list(fresh)
            if keep_everything:
                devices = [data.with_more(old) for data, old in zip(fresh, kept, strict=True)]
                kept = list(devices)
                server = FedMobile(trainer.spec, setting.start, chosen)
            server.begin_chunk(chunk)
            seconds = 0.0
            for _ in range(setting.rounds):
                number += 1
                server.begin_round(number)
                updates = []
                for device, data in enumerate(devices):
                    task = replace(
                        TASK,
                        round_number=number,
                        chunk=chunk,
                        algorithm="fedavg" if settings is None else "fedmobile",
                        settings=chosen.to_json(),
                        epochs=epochs,
                        learning_rate=rate,
                        seed=setting.seed_of(number, device),
                    )
                    sent = server.send(str(device), 1.0)
                    trained = trainer.train(
                        sent.arrays,
                        data,
                        task,
                        teacher=server.teacher(1.0),
                        exemplars=exemplars[device],
                    )
                    seconds += trained.seconds
                    weight = server.weight(_result(trained, number, device))
                    updates.append(Update(str(device), trained.arrays, sent.channels, weight))
                server.end_round(updates)
            outcome.device_seconds.append(seconds / len(devices))
            setting.score(server.arrays, outcome)
            models = 1 + (settings is not None) * (
                bool(chosen.consistency) + bool(chosen.distillation)
            )
            more = exemplars[0].nbytes if exemplars[0] else 0
            outcome.held_bytes = devices[0].nbytes + more + models * _bytes(setting.start)
            if chosen.exemplars_per_class:
                exemplars = [
                    _with_exemplars(old, data, server.arrays, trainer, chosen.exemplars_per_class)
                    for old, data in zip(exemplars, devices, strict=True)
                ]
        return outcome

    return row


def baseline_row(
    make: type[FedMatch] | type[SemiFL], rate: float = BASELINE_RATE
) -> Callable[[Setting], Outcome]:
    """Rows of the published methods."""

    def row(setting: Setting) -> Outcome:
        start = {n: torch.from_numpy(a.copy()) for n, a in setting.start.items()}
        method = make(MODEL, start, Steps(EPOCHS, BATCH, rate, UNLABELLED))
        outcome, number = Outcome(), 0
        setting.score(setting.start, outcome)
        for chunk, devices in enumerate(setting.stream.devices, 1):
            rng = np.random.default_rng(setting.seed_of(chunk))
            began = time.perf_counter()
            method.begin_chunk(devices, rng)
            for _ in range(setting.rounds):
                number += 1
                method.round(devices, number, rng)
            outcome.device_seconds.append((time.perf_counter() - began) / len(devices))
            setting.score({n: t.numpy() for n, t in method.model().items()}, outcome)
        models = 2 + 2 * 2 if make is FedMatch else 2  # sigma, psi and two helpers of both
        outcome.held_bytes = setting.stream.devices[-1][0].nbytes + models * _bytes(setting.start)
        return outcome

    return row


def centre_with_all_labels(setting: Setting) -> Outcome:
    """The bound: every window of every chunk so far in one place, the factory's too, all labels."""
    outcome, trainer = Outcome(), setting.trainer
    setting.score(setting.start, outcome)
    everything = setting.stream.public
    for chunk, devices in enumerate(setting.stream.all_labels, 1):
        for data in devices:
            everything = everything.with_more(data)
        task = factory_task(setting.seed_of(chunk))
        trained = trainer.train(initial(setting.seed), everything, task)
        outcome.device_seconds.append(trained.seconds)
        setting.score(trained.arrays, outcome)
    outcome.held_bytes = everything.nbytes + _bytes(setting.start)
    return outcome


ROWS: dict[str, Callable[[Setting], Outcome]] = {
    "as shipped, no training": as_shipped,
    "labelled-only FedAvg": penstock_row(None, epochs=LABELLED_EPOCHS, rate=LABELLED_RATE),
    "FedMatch": baseline_row(FedMatch),
    "SemiFL (labels at the server)": baseline_row(SemiFL),
    "FedMobile-style": penstock_row(OURS),
    "- distillation": penstock_row(replace(OURS, distillation=0.0)),
    "- consistency": penstock_row(replace(OURS, consistency=0.0)),
    "- both": penstock_row(replace(OURS, distillation=0.0, consistency=0.0)),
    "- alignment": penstock_row(replace(OURS, alignment=0.0)),
    "- calibration": penstock_row(replace(OURS, calibration=0.0)),
    "- moving teacher (round's)": penstock_row(replace(OURS, teacher="round")),
    "- propagation": penstock_row(replace(OURS, propagation=0.0)),
    "labelled-only, 5 exemplars": penstock_row(
        LABELLED_ONLY, epochs=LABELLED_EPOCHS, rate=LABELLED_RATE
    ),
    "FedMobile-style, 5 exemplars": penstock_row(WITH_EXEMPLARS),
    "the same - propagation": penstock_row(replace(WITH_EXEMPLARS, propagation=0.0)),
    "the same - distillation": penstock_row(replace(WITH_EXEMPLARS, distillation=0.0)),
    "the same - consistency": penstock_row(replace(WITH_EXEMPLARS, consistency=0.0)),
    "retrain everything": penstock_row(
        replace(OURS, distillation=0.0, alignment=0.0), keep_everything=True
    ),
    "one place, all labels": centre_with_all_labels,
}


def _result(trained: Trained, number: int, device: int) -> TrainResult:
    return TrainResult(
        str(device),
        TASK.run,
        number,
        examples=trained.examples,
        labelled=trained.labelled,
        confident=trained.confident,
    )


def _with_exemplars(
    old: TrainingData | None, data: TrainingData, arrays: Arrays, trainer: Trainer, count: int
) -> TrainingData:
    """Labelled windows closest to their class's mean, beside those of earlier chunks."""
    labelled = data.subset(data.labelled)
    features = trainer.features(arrays, labelled.inputs)
    return labelled.subset(select_exemplars(features, labelled.labels, count)).with_more(old)


def _bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
