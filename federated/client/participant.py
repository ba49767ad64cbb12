"""What a device does with a message of the server, with no network in it.

    participant = Participant(store, device, limits)
    participant.capabilities()               can it take part, and with what
    participant.train(task, arrays)          one local update, or why not
    participant.evaluate(task, arrays)       how the model does on this device's labels

Nothing the server sends is trusted: task, model and arrays are checked before they are used. A
refusal is an answer, with its reason, and is kept in the store. The same question asked twice is
trained once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import penstock
from penstock.errors import BudgetError, PenstockError, RefusedUpdateError, StorageError, UsageError
from penstock.federated.arrays import Arrays, check_arrays, digest, nbytes
from penstock.federated.client.answers import (
    device_seed,
    evaluated_result,
    refused_result,
    trained_result,
)
from penstock.federated.client.chunks import exemplars_per_class, open_chunk
from penstock.federated.client.memory import MemoryGuard
from penstock.federated.client.rounds import GLOBAL, TEACHER, StoredModel
from penstock.federated.client.standing import Standings
from penstock.federated.client.store import Store
from penstock.federated.models.registry import ModelOptions, model_spec
from penstock.federated.protocol import MOST_BYTES, Capabilities, Notice, TrainResult, TrainTask
from penstock.federated.submodels import check_ratio
from penstock.federated.training.trainer import Trainer, check_task, never

LOG = logging.getLogger(__name__)
DATA_SHARE = 0.5  # of the memory, that windows may take
LEAST_S = 1e-3  # no time; 0 would be no limit


@dataclass(frozen=True)
class Limits:
    """What training may take of the device.

    Attributes:
        memory_bytes: beside the idle process; 0: no bound.
        cores: threads of training.
        most_ratio: widest sub-model.
        most_seconds: of one training, whatever the server allows; 0: no bound.
    """

    memory_bytes: int = 0
    cores: int = 1
    most_ratio: float = 1.0
    most_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_ratio(self.most_ratio)
        if self.cores < 1 or self.memory_bytes < 0:
            raise UsageError(f"limits: {self.cores} cores and {self.memory_bytes} bytes")


@dataclass(frozen=True)
class Readiness:
    """Whether the device takes part now: see daemon/conditions.py.

    Attributes:
        reason: why not; empty: it does.
        battery: 0 to 1; -1: there is none.
    """

    reason: str = ""
    battery: float = -1.0
    on_power: bool = True


class Participant:
    """One device of a federation. Not for two threads at once.

    Args:
        store: its data.
        device: its stable identity, 16 hex letters.
        limits: what training may take.
        readiness: asked before every training.
        should_stop: asked before every step of training; True ends it with a refusal.
    """

    def __init__(
        self,
        store: Store,
        device: str,
        limits: Limits | None = None,
        *,
        readiness: Callable[[], Readiness] = Readiness,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        self.store = store
        self.device = device
        self.limits = limits or Limits()
        self._readiness = readiness
        self._should_stop = should_stop
        self._trainer: Trainer | None = None
        self._standings = Standings(store.database)

    def capabilities(self, notice: Notice | None = None) -> Capabilities:
        """What this device can do, and whether it takes part now.

        Args:
            notice: that came with the query; None: none came, what the last one said holds.
        """
        now, counts = self._readiness(), self.store.counts()
        reason = now.reason
        if not reason and not counts.labelled and not counts.unlabelled:
            reason = "there is no window for this time chunk: penstock federated ingest adds some"
        with _kept():
            self._standings.after_query(reason, notice)
        return Capabilities(
            device=self.device,
            version=penstock.__version__,
            memory_bytes=self.limits.memory_bytes,
            cores=self.limits.cores,
            most_ratio=self.limits.most_ratio,
            battery=now.battery,
            on_power=now.on_power,
            ready=not reason,
            reason=reason,
            labelled=counts.labelled,
            unlabelled=counts.unlabelled,
            input_shape=json.dumps(self.store.shape),
            labels=json.dumps(self.store.labels),
        )

    def train(
        self, task: TrainTask, arrays: Arrays, asked_at: float = 0.0
    ) -> tuple[TrainResult, Arrays | None]:
        """One local update.

        Args:
            asked_at: Unix time from which the task's seconds count, for it may have lain here while
                the process was started anew; 0: they count from the first step.

        Returns:
            The result, and the trained arrays; none where `result.refused` says why.

        Raises:
            StorageError: something could not be read or kept: the disk is full, or busy with an
                ingest. Nothing was sent, so ask again.
        """
        asked = _question(task, arrays)
        known = self.store.rounds.answer("train", task.run, task.round_number, asked)
        if known is not None:
            return known
        try:
            result, trained = self._train(task, arrays, asked_at)
        except StorageError:
            raise  # no refusal of the round: it is trained when there is room
        except (PenstockError, MemoryError, RuntimeError, ArithmeticError) as error:
            result = self._refuse(task, asked, error)
            # Else it was for now only: its conditions, or its end.
            if not self._readiness().reason and not self._should_stop():
                self.cannot(result.refused)
            return result, None
        with _kept():
            self._standings.after_task()
        self.store.rounds.save_answer("train", asked, result, trained)
        return result, trained

    def cannot(self, reason: str) -> None:
        """Note for the status that a task could not be done."""
        with _kept():
            self._standings.after_task(reason)

    def evaluate(self, task: TrainTask, arrays: Arrays) -> TrainResult:
        """How these arrays do on the labelled windows of the open chunk.

        Raises:
            StorageError: as `train`.
        """
        asked = _question(task, arrays)
        try:
            options = self._check(task, arrays)
            open_chunk(self.store, task, self._warm, self._data_bytes())
            self._keep(replace(task, chunk_round=0), arrays)  # it comes after the round's training
            data = self.store.training_data(self._data_bytes())
            if not len(data.labelled):
                raise RefusedUpdateError("none of the windows here has a label to evaluate with")
            found = self._warm(options, task.ratio).evaluate(arrays, data)
        except StorageError:
            raise
        except (PenstockError, MemoryError, RuntimeError, ArithmeticError) as error:
            return self._refuse(task, asked, error)
        return evaluated_result(self.device, task, found)

    # ---------------------------------------------------------------- one update

    def _train(
        self, task: TrainTask, arrays: Arrays, asked_at: float
    ) -> tuple[TrainResult, Arrays]:
        reason = self._readiness().reason
        if reason:
            raise RefusedUpdateError(f"not now: {reason}")
        options = self._check(task, arrays)
        open_chunk(self.store, task, self._warm, self._data_bytes())
        self._keep(task, arrays)
        teacher = self.store.rounds.model(TEACHER)
        fits = (
            teacher is not None
            and (teacher.run, teacher.chunk) == (task.run, task.chunk)
            and (teacher.options, teacher.ratio) == (task.model, task.ratio)
            and task.algorithm == "fedmobile"
        )
        trainer = self._warm(options, task.ratio)
        guard = MemoryGuard(self.limits.memory_bytes)
        trained = trainer.train(
            arrays,
            self.store.training_data(self._data_bytes()),
            replace(
                task,
                seed=device_seed(task.seed, self.device),
                seconds=self._seconds(task.seconds, asked_at),
            ),
            memory_bytes=self.limits.memory_bytes,
            teacher=teacher.arrays if fits and teacher is not None else None,
            exemplars=self.store.training_data(self._data_bytes(), exemplars=True)
            if self.store.counts().exemplars
            else None,
            should_stop=lambda: self._should_stop() or guard.exceeded(),
        )
        if guard.exceeded_bytes:
            raise BudgetError(
                f"training took {guard.exceeded_bytes:,} bytes beside the idle process, the budget "
                f"is {self.limits.memory_bytes:,}: raise `memory`, or lower `most_ratio`"
            )
        if trained.stopped and self._should_stop():
            raise RefusedUpdateError("the device was asked to stop while it trained")
        if not trained.steps:
            raise RefusedUpdateError(
                f"the time, {task.seconds:g} s, was over before the first step of training"
            )
        return trained_result(self.device, task, trained), trained.arrays

    def _check(self, task: TrainTask, arrays: Arrays) -> ModelOptions:
        if task.round_number < 1 or not 0 <= task.chunk < 1 << 31 or not 0 < len(task.run) <= 64:
            raise RefusedUpdateError(
                f"the server's task has run {task.run[:64]!r}, round {task.round_number} and chunk "
                f"{task.chunk}; expected a name, from 1 on and from 0 on"
            )
        if task.ratio > self.limits.most_ratio:
            raise RefusedUpdateError(
                f"the model has ratio {task.ratio:g}, this device takes {self.limits.most_ratio:g} "
                "at most"
            )
        options = ModelOptions.from_json(task.model, "the server's task")
        if nbytes(arrays) > MOST_BYTES:
            raise RefusedUpdateError(
                f"the server sent {nbytes(arrays):,} bytes, at most {MOST_BYTES:,} are taken"
            )
        shape, names = self.store.shape, self.store.labels
        if shape and shape != options.input_shape:
            raise RefusedUpdateError(
                f"the model takes windows of shape {options.input_shape}, this device has "
                f"{shape}; the federation is for other sensors"
            )
        if names and len(names) != options.classes:
            raise RefusedUpdateError(
                f"the model has {options.classes} classes, this device's data has {len(names)} "
                "label names"
            )
        check_arrays(arrays, model_spec(options).at(task.ratio).by_name(), "the server")
        check_task(task)
        exemplars_per_class(task)  # its settings can be read: before a chunk is closed for it
        return options

    def _keep(self, task: TrainTask, arrays: Arrays) -> None:
        """The global model as it came: for inference here, and the next chunk's teacher."""
        received = StoredModel(
            arrays, task.model, task.ratio, task.run, task.round_number, task.chunk
        )
        held, rounds = self.store.rounds.model(TEACHER), self.store.rounds
        if task.chunk > 0 and (held is None or (held.run, held.chunk) != (task.run, task.chunk)):
            before = rounds.model(GLOBAL)
            if task.chunk_round == 1:  # the global model at the end of the chunk before
                rounds.save_model(TEACHER, received)
            # It was not asked then, or missed it: what comes now has learnt from this chunk.
            elif before is not None and (before.run, before.chunk) == (task.run, task.chunk - 1):
                rounds.save_model(TEACHER, replace(before, chunk=task.chunk))
        rounds.save_model(GLOBAL, received)

    def _warm(self, options: ModelOptions, ratio: float) -> Trainer:
        warm = self._trainer
        if warm is None or (warm.model, warm.ratio) != (options, ratio):
            self._trainer = None  # the old model goes before the new one is built
            self._trainer = warm = Trainer(options, ratio, self.limits.cores)
        return warm

    def _seconds(self, asked: float, asked_at: float) -> float:
        own = self.limits.most_seconds
        if asked and asked_at:  # a clock that is behind gives no more than was asked
            asked = min(asked, max(asked_at + asked - time.time(), LEAST_S))
        return min(asked, own) if asked and own else asked or own

    def _data_bytes(self) -> int:
        return int(self.limits.memory_bytes * DATA_SHARE)

    def _refuse(self, task: TrainTask, asked: str, error: BaseException) -> TrainResult:
        reason = str(error) if isinstance(error, PenstockError) else f"{type(error).__name__}: "
        if not isinstance(error, PenstockError):
            reason += f"{error}; a fault of this device's software, see its log"
            LOG.error("training failed", exc_info=error)
        LOG.warning("refused round %d of run %s: %s", task.round_number, task.run, reason)
        result = refused_result(self.device, task, reason)
        try:
            self.store.rounds.save_answer("refused", asked, result, None)
        except PenstockError as full:  # the refusal may be because of a full disk
            LOG.error("the refusal could not be kept: %s", full)
        return result


@contextmanager
def _kept() -> Iterator[None]:
    """What is noted for the status may be lost to a full disk; the answer is not lost with it."""
    try:
        yield
    except StorageError as full:
        LOG.error("the device's standing could not be kept: %s", full)


def _question(task: TrainTask, arrays: Arrays) -> str:
    """What was asked, less how long it may take: a server that was restarted asks the same."""
    try:
        fields = {name: value for name, value in task.to_record().items() if name != "seconds"}
        text = json.dumps(fields, sort_keys=True, default=str)
        return hashlib.sha256(f"{text}/{digest(arrays)}".encode()).hexdigest()
    except (AttributeError, ValueError, TypeError):
        return "not arrays"
