"""Trains and evaluates one model, kept warm: the module is built once and reused by every call.

    trainer = Trainer(options, ratio=0.5, threads=2)
    trained = trainer.train(arrays, data, task, memory_bytes=64 << 20)
    trainer.evaluate(trained.arrays, held_out).macro_f1

Arrays go in and new arrays come out; what was given is never changed, and a training that fails
leaves nothing behind. The same task, arrays and data give the same result in every run; the order
in which torch adds up may change with the number of threads, and with it the last bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.errors import UsageError
from penstock.federated.arrays import Arrays, check_arrays, copy_arrays
from penstock.federated.fedmobile.propagation import Propagation
from penstock.federated.models.registry import ModelOptions, build_module, model_spec
from penstock.federated.protocol import TrainTask
from penstock.federated.training import metrics
from penstock.federated.training.batches import NONE, Batch
from penstock.federated.training.data import TrainingData, check_fits
from penstock.federated.training.local_update import LocalUpdate, Supervised
from penstock.federated.training.loop import run_loop
from penstock.federated.training.memory_budget import (
    STEADY_BYTES,
    MemoryNeed,
    measure_need,
    peak_resident_bytes,
    reset_peak,
)
from penstock.federated.training.time_budget import TimeBudget

if TYPE_CHECKING:
    import torch
    from torch import nn


def never() -> bool:
    """Nothing asks the training to stop."""
    return False


@dataclass(frozen=True)
class Trained:
    """What one local update made.

    Attributes:
        arrays: the trained model.
        examples: windows it used; labelled: of these, with a label; confident: unlabelled ones that
            a teacher was sure of.
        loss: mean over the steps; steps: of the optimizer; 0: the time was over before the first.
        seconds: wall clock; peak_bytes: most resident memory of the process meanwhile.
        stopped: time or `should_stop` ended it before its last epoch.
        part: windows trained at once; less than a batch where memory was short.
    """

    arrays: Arrays = field(repr=False)
    examples: int
    labelled: int
    confident: int
    loss: float
    steps: int
    seconds: float
    peak_bytes: int
    stopped: bool
    part: int


@dataclass(frozen=True)
class Evaluated:
    """How a model does on labelled windows.

    Attributes:
        examples: windows with a label; the others are left out.
        loss: mean cross-entropy; accuracy: share of right ones; all 0 without examples.
        macro_f1: mean over the classes that are present.
        per_class_f1: of each class; -1 where no window has it.
    """

    examples: int
    loss: float
    accuracy: float
    macro_f1: float
    per_class_f1: tuple[float, ...]


class Trainer:
    """A warm model of one width. Not for two threads at once.

    Args:
        model: which.
        ratio: its width.
        threads: for torch, while it trains or evaluates.
        remembered_bytes: of what fedmobile found in windows of earlier trainings, beside the last:
            for a process that is many devices.

    Raises:
        BackendMissingError: torch is not installed.
        UsageError: a ratio or a number of threads out of range.
    """

    def __init__(
        self, model: ModelOptions, ratio: float, threads: int = 1, remembered_bytes: int = 0
    ) -> None:
        if threads < 1:
            raise UsageError(f"threads is {threads}, expected 1 or more")
        self.model, self.ratio, self.threads = model, ratio, threads
        self.spec = model_spec(model).at(ratio)
        self._module = build_module(model, ratio)
        self._expected = self.spec.by_name()
        self._propagation = Propagation(remembered_bytes)
        self._twins: dict[str, nn.Module] = {}
        self._needs: dict[tuple[str, str, int, bool], MemoryNeed] = {}

    def train(
        self,
        arrays: Arrays,
        data: TrainingData,
        task: TrainTask,
        *,
        memory_bytes: int = 0,
        teacher: Arrays | None = None,
        exemplars: TrainingData | None = None,
        should_stop: Callable[[], bool] = never,
    ) -> Trained:
        """One local update.

        Args:
            arrays: the model as the server sent it.
            data: windows of this chunk.
            task: algorithm, epochs, batch, learning rate; its seed is used as it is, so add the
                device's identity to it before; its seconds are a limit from now on.
            memory_bytes: that training may use beside the idle process; 0: no limit.
            teacher: the model at the end of the previous chunk, of the same ratio; fedmobile only.
            exemplars: labelled windows kept from earlier chunks.
            should_stop: asked before every step.

        Raises:
            BudgetError: the memory budget cannot hold it.
            UsageError: there is nothing to train on, or a number is out of range.
            RefusedUpdateError: the arrays or the data do not fit the model, or the loss diverged.
        """
        check_task(task)
        check_fits(data, self.model)
        if exemplars is not None:
            check_fits(exemplars, self.model)
            data = data.with_more(exemplars)
        check_arrays(arrays, self._expected, "the model to train")
        if teacher is not None:
            check_arrays(teacher, self._expected, "the model of the previous chunk")
        began = time.monotonic()
        budget = TimeBudget(task.seconds)
        reset_peak()
        with self._torch_threads():
            _load(self._module, arrays)
            update = self._local_update(arrays, data, task, teacher)
            part = self._largest_part(update, data, task, memory_bytes)
            _load(self._module, arrays)  # a probe has moved BatchNorm's statistics
            update.prepare(
                part,
                self._room(update, data, memory_bytes),
                lambda: should_stop() or not budget.allows_step(),
            )
            looped = run_loop(
                self._module,
                update,
                learning_rate=task.learning_rate,
                largest_part=part,
                budget=budget,
                should_stop=should_stop,
                rng=np.random.default_rng(_entropy(task.seed)),
            )
            result = self._unload()
        check_arrays(result, self._expected, "the trained model")
        uses_unlabelled = task.algorithm == "fedmobile"
        return Trained(
            result,
            examples=(len(data) if uses_unlabelled else update.labelled) if looped.steps else 0,
            labelled=update.labelled if looped.steps else 0,
            confident=update.confident() if looped.steps else 0,  # a probe asks the teacher too
            loss=looped.loss,
            steps=looped.steps,
            seconds=time.monotonic() - began,
            peak_bytes=peak_resident_bytes(),
            stopped=looped.stopped,
            part=part,
        )

    def evaluate(self, arrays: Arrays, data: TrainingData, batch: int = 256) -> Evaluated:
        """The model on the windows that have a label.

        Raises:
            RefusedUpdateError: the arrays or the data do not fit the model.
        """
        data = data.subset(data.labelled)
        check_fits(data, self.model)
        logits = self.logits(arrays, data.inputs, batch)
        counts = metrics.confusion(data.labels, logits.argmax(axis=1), self.model.classes)
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(data)), data.labels]
        return Evaluated(
            examples=len(data),
            loss=float(losses.mean()) if len(data) else 0.0,
            accuracy=metrics.accuracy(counts),
            macro_f1=metrics.macro_f1(counts),
            per_class_f1=metrics.per_class_f1(counts),
        )

    def logits(
        self, arrays: Arrays, inputs: NDArray[np.float32], batch: int = 256
    ) -> NDArray[np.float32]:
        """float32 [n, classes], in batches of this size."""
        return self._forward(arrays, inputs, batch, lambda windows: self._module(windows))

    def features(
        self, arrays: Arrays, inputs: NDArray[np.float32], batch: int = 256
    ) -> NDArray[np.float32]:
        """float32 [n, width]: what enters the classifier, for herding."""
        seen: list[torch.Tensor] = []
        classifier: nn.Module = self._module.classifier  # type: ignore[assignment]
        hook = classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))

        def forward(windows: torch.Tensor) -> torch.Tensor:
            self._module(windows)
            return seen.pop()

        try:
            return self._forward(arrays, inputs, batch, forward)
        finally:
            hook.remove()

    # ---------------------------------------------------------------- the warm module

    def _forward(
        self,
        arrays: Arrays,
        inputs: NDArray[np.float32],
        batch: int,
        forward: Callable[[torch.Tensor], torch.Tensor],
    ) -> NDArray[np.float32]:
        import torch

        check_arrays(arrays, self._expected, "the model to run")
        if batch < 1:
            raise UsageError(f"batch is {batch}, expected 1 or more")
        with self._torch_threads(), torch.inference_mode():
            _load(self._module, arrays)
            self._module.eval()
            found = [forward(part) for part in torch.split(torch.from_numpy(inputs), batch)]
            joined: NDArray[np.float32] = torch.cat(found).numpy()
        return joined

    def _unload(self) -> Arrays:
        held = {name: tensor.numpy() for name, tensor in self._module.state_dict().items()}
        return copy_arrays(held)

    def _local_update(
        self, arrays: Arrays, data: TrainingData, task: TrainTask, teacher: Arrays | None
    ) -> LocalUpdate:
        if task.algorithm == "fedmobile":
            from penstock.federated.fedmobile.local_update import FedMobileUpdate
            from penstock.federated.fedmobile.settings import FedMobileSettings

            settings = FedMobileSettings.from_json(task.settings, "the task's settings")
            frozen = self._frozen
            return FedMobileUpdate(
                self._module,
                data,
                settings,
                epochs=task.epochs,
                batch=task.batch,
                teacher=frozen("round", arrays) if settings.consistency else None,
                previous=frozen("chunk", teacher) if teacher and settings.distillation else None,
                propagation=self._propagation,
            )
        return Supervised(self._module, data, epochs=task.epochs, batch=task.batch)

    def _frozen(self, use: str, arrays: Arrays) -> nn.Module:
        """A second module with these parameters, kept warm as well."""
        if use not in self._twins:
            twin = build_module(self.model, self.ratio)
            self._twins[use] = twin.eval().requires_grad_(False)
        _load(self._twins[use], arrays)
        return self._twins[use]

    def _largest_part(
        self, update: LocalUpdate, data: TrainingData, task: TrainTask, memory_bytes: int
    ) -> int:
        """Windows to train at once."""
        rng = np.random.default_rng(0)  # of its own: the probe must not change the training
        whole = next(update.batches(rng))
        if not memory_bytes:
            return max(1, len(whole))

        def loss_of(windows: int) -> torch.Tensor:
            part = _dearest(whole, windows)
            return update.loss(part, part, rng)

        key = (task.algorithm, task.settings, update.extra_bytes(), len(whole.unlabelled) > 0)
        if key not in self._needs:
            self._module.train()
            self._needs[key] = measure_need(self._module, loss_of, update.extra_bytes())
        need = self._needs[key]
        held = MemoryNeed(need.fixed_bytes + data.nbytes, need.window_bytes)
        return held.largest_part(memory_bytes, max(1, len(whole)))

    def _room(self, update: LocalUpdate, data: TrainingData, memory_bytes: int) -> int:
        """Bytes that are left before the first step, without gradients, moments and activations; 0:
        no limit."""
        weights = sum(tensor.nbytes for tensor in self._module.state_dict().values())
        held = weights + data.nbytes + update.extra_bytes() + STEADY_BYTES
        return max(1, memory_bytes - held) if memory_bytes else 0

    @contextmanager
    def _torch_threads(self) -> Iterator[None]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def check_task(task: TrainTask) -> None:
    """Refuse numbers that no training can use.

    Raises:
        UsageError: epochs, batch, learning rate or seconds out of range.
    """
    for name, value, least, most in (
        ("epochs", task.epochs, 1, 10_000),
        ("batch", task.batch, 1, 1 << 20),
        ("learning_rate", task.learning_rate, 1e-12, 1e3),
        ("seconds", task.seconds, 0, 1e9),
    ):
        if not least <= value <= most:
            raise UsageError(f"the task's {name} is {value}, expected {least} to {most}")


def _load(module: nn.Module, arrays: Arrays) -> None:
    """Values of the module's parameters and statistics, by name."""
    import torch

    with torch.no_grad():
        for name, held in module.state_dict().items():
            held.copy_(torch.from_numpy(np.asarray(arrays[name])))


def _dearest(whole: Batch, windows: int) -> Batch:
    """So many windows of the kind that takes more memory, repeated where there are too few: a part
    of a batch may hold that kind only."""
    if len(whole.unlabelled):  # two views and two models' opinions
        return Batch(NONE, np.resize(whole.unlabelled, windows))
    return Batch(np.resize(whole.labelled, windows), NONE)


def _entropy(seed: int) -> int:
    """NumPy takes no negative seeds; a message may hold one."""
    return seed & ((1 << 64) - 1)
