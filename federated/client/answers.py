"""What a device answers, real or virtual: the same fields from the same figures."""

from __future__ import annotations

import hashlib

from penstock.federated.arrays import digest
from penstock.federated.protocol import TrainResult, TrainTask
from penstock.federated.training.trainer import Evaluated, Trained


def trained_result(device: str, task: TrainTask, trained: Trained) -> TrainResult:
    """After a local update."""
    return TrainResult(
        device,
        task.run,
        task.round_number,
        examples=trained.examples,
        labelled=trained.labelled,
        confident=trained.confident,
        loss=trained.loss,
        steps=trained.steps,
        seconds=trained.seconds,
        peak_bytes=trained.peak_bytes,
        stopped=trained.stopped,
        sha256=digest(trained.arrays),
    )


def evaluated_result(device: str, task: TrainTask, found: Evaluated) -> TrainResult:
    """After an evaluation, which only labelled windows take part in."""
    return TrainResult(
        device,
        task.run,
        task.round_number,
        examples=found.examples,
        labelled=found.examples,
        loss=found.loss,
        accuracy=found.accuracy,
        macro_f1=found.macro_f1,
    )


def refused_result(device: str, task: TrainTask, reason: str) -> TrainResult:
    """Nothing but why: cut to what the protocol carries."""
    return TrainResult(
        device, task.run[:64], task.round_number, refused=reason[:4000] or "no reason"
    )


def device_seed(seed: int, device: str) -> int:
    """A round's seed for one device: other batches on each, the same when asked again."""
    name = hashlib.sha256(f"{seed}/{device}".encode()).digest()
    return int.from_bytes(name[:8], "little") >> 1
