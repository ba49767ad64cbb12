"""Virtual devices: what a Ray actor runs for each message, with the real training and no daemon.

    app = VirtualApp(VirtualPlan(folder, seed=1))     pickled into each call of an actor
    app(message, context)                             Flower's messages, as on a real device

A device is a number, the `partition-id` of Flower's context. Its samples are copied from the mapped
shards when it is asked; a warm `Trainer` for each width stays in the actor from call to call, so
that the thousandth device costs its training steps and nothing else. There is no database: the
same question gives the same answer because nothing but the question decides it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import penstock
from penstock.errors import PenstockError, RefusedUpdateError
from penstock.federated.arrays import Arrays
from penstock.federated.client.answers import (
    device_seed,
    evaluated_result,
    refused_result,
    trained_result,
)
from penstock.federated.models.registry import ModelOptions
from penstock.federated.protocol import Capabilities, Notice, TrainResult, TrainTask
from penstock.federated.simulation.samples import Shards, open_shards
from penstock.federated.training.trainer import Trainer

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

PARTITION_ID = "partition-id"  # Flower's name of a virtual device's number
MOST_WARM = 8  # trainers of an actor; a federation has a few widths
REMEMBERED_BYTES = 16 << 20  # of each, of its devices; see fedmobile/propagation.py


@dataclass(frozen=True)
class VirtualPlan:
    """What an actor needs to be any of the devices.

    Attributes:
        folder: of the shards, and of the models of past chunks.
        seed: of the simulation: it makes the devices' identities.
        threads: of training, in each actor.
        memory_bytes: that a device's training may use; 0: no limit.
    """

    folder: str
    seed: int
    threads: int = 1
    memory_bytes: int = 0


class VirtualDevice:
    """One device, asked as a `Participant` is: an `Answering`, without a store."""

    def __init__(self, plan: VirtualPlan, shards: Shards, index: int) -> None:
        self.plan, self.shards, self.index = plan, shards, index
        self.device = identity(plan.seed, index)

    def capabilities(self, notice: Notice | None = None) -> Capabilities:
        """All devices can do the same; they differ in their data."""
        del notice  # nobody looks at its status
        labelled, unlabelled = self.shards.counts(self.index)
        return Capabilities(
            device=self.device,
            version=penstock.__version__,
            memory_bytes=self.plan.memory_bytes or 1 << 40,
            cores=self.plan.threads,
            most_ratio=1.0,
            battery=-1.0,
            on_power=True,
            ready=True,
            reason="",
            labelled=labelled,
            unlabelled=unlabelled,
            input_shape=json.dumps(self.shards.inputs.shape[1:]),
            labels="[]",
        )

    def train(
        self, task: TrainTask, arrays: Arrays, asked_at: float = 0.0
    ) -> tuple[TrainResult, Arrays | None]:
        """One local update, or a refusal with its reason."""
        del asked_at  # the time that it waited for its turn is no device's
        try:
            trainer = _trainer(task.model, task.ratio, self.plan.threads)
            trained = trainer.train(
                arrays,
                self.shards.device(self.index, task.chunk),
                replace(task, seed=device_seed(task.seed, self.device)),
                memory_bytes=self.plan.memory_bytes,
                teacher=read_teacher(self.plan.folder, task),
            )
            if not trained.steps:
                raise RefusedUpdateError(f"{task.seconds:g} s were over before the first step")
        except PenstockError as error:
            return refused_result(self.device, task, str(error)), None
        return trained_result(self.device, task, trained), trained.arrays

    def cannot(self, reason: str) -> None:
        """A task could not be read; the answer tells it, and there is no status to keep it in."""

    def evaluate(self, task: TrainTask, arrays: Arrays) -> TrainResult:
        """How these arrays do on the device's labelled samples of this chunk."""
        try:
            trainer = _trainer(task.model, task.ratio, self.plan.threads)
            found = trainer.evaluate(arrays, self.shards.device(self.index, task.chunk))
            if not found.examples:
                raise RefusedUpdateError("none of its samples has a label to evaluate with")
        except PenstockError as error:
            return refused_result(self.device, task, str(error))
        return evaluated_result(self.device, task, found)


@dataclass(frozen=True)
class VirtualApp:
    """A ClientApp that is whichever device Flower's context names. Small, and can be pickled."""

    plan: VirtualPlan

    def __call__(self, message: Message, context: Context) -> Message:
        """The device's reply."""
        actor = _actor(self.plan)
        actor.index = int(context.node_config[PARTITION_ID])
        return actor.app(message, context)


class _Actor:
    """What stays warm in an actor's process: the mapped shards and Flower's ClientApp."""

    def __init__(self, plan: VirtualPlan) -> None:
        from penstock.federated.client.client_app import client_app

        self.plan, self.shards = plan, open_shards(Path(plan.folder))
        self.index = 0
        self.app: ClientApp = client_app(self._device)

    def _device(self) -> VirtualDevice:
        return VirtualDevice(self.plan, self.shards, self.index)


@lru_cache(maxsize=1)
def _actor(plan: VirtualPlan) -> _Actor:
    return _Actor(plan)


@lru_cache(maxsize=MOST_WARM)
def _trainer(model: str, ratio: float, threads: int) -> Trainer:
    options = ModelOptions.from_json(model, "the server's task")
    return Trainer(options, ratio, threads, REMEMBERED_BYTES)


def identity(seed: int, index: int) -> str:
    """A device's stable identity: 16 hex letters."""
    return hashlib.sha256(f"virtual device {seed}/{index}".encode()).hexdigest()[:16]


# ---------------------------------------------------------------- the model of the chunk before


def keep_teacher(folder: str, task: TrainTask, teacher: Callable[[float], Arrays | None]) -> None:
    """Put the previous chunk's model of the task's width where actors find it.

    A real device keeps it itself, when it is asked in a chunk's first round. Here the server's
    side does it for all, from its own state, which every checkpoint has: it does not matter which
    actor is which device, who was asked before, and whether the run was resumed since.
    """
    path = _teacher_path(folder, task)
    if task.algorithm != "fedmobile" or task.chunk < 1 or path.exists():
        return
    arrays = teacher(task.ratio)
    if arrays is not None:
        np.savez(path, **arrays)  # type: ignore[arg-type]


@lru_cache(maxsize=MOST_WARM)
def _read_npz(path: str) -> Arrays:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def read_teacher(folder: str, task: TrainTask) -> Arrays | None:
    """What `keep_teacher` kept; None in the first chunk and for other algorithms."""
    path = _teacher_path(folder, task)
    return _read_npz(str(path)) if task.algorithm == "fedmobile" and path.exists() else None


def _teacher_path(folder: str, task: TrainTask) -> Path:
    return Path(folder) / f"teacher-{task.run[:16]}-{task.chunk}-{task.ratio:g}.npz"
