"""One device's FedMobile-style update in one chunk of time.

Each step sees a labelled batch and a larger unlabelled one. The labels teach directly; a teacher
labels weak views of unlabelled windows, and where it is sure, the model learns the strong view of
the same window; and on all of them the model stays close to the one of the previous chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import UsageError
from penstock.federated.fedmobile.losses import (
    alignment,
    consistency_loss,
    distillation_loss,
    label_prior,
    labelled_loss,
)
from penstock.federated.fedmobile.propagation import MOST_BYTES, Propagation, windows_within
from penstock.federated.fedmobile.settings import FedMobileSettings
from penstock.federated.training.augmentations import strong_view, weak_view
from penstock.federated.training.batches import Batch, epochs_of_batches
from penstock.federated.training.data import TrainingData

if TYPE_CHECKING:
    import torch
    from torch import nn

FORWARD_BATCH = 64  # without gradients, so this takes less memory than a step
OPINIONS = 4  # float32 of each window and class at once: logits, neighbours', their logarithm, sum
LEAST_REACHED = 0.05  # probability of a class that no label of which has reached a window


class FedMobileUpdate:
    """A `LocalUpdate` (training/local_update.py).

    Args:
        module: the model in training, with the round's global parameters loaded.
        data: labelled and unlabelled windows of this chunk, and exemplars if any are kept.
        settings: of the federation.
        epochs, batch: of local training; `batch` counts labelled windows.
        teacher: the round's global model, frozen, a module of its own that an "ema" teacher may
            change; None: no consistency.
        previous: the model at the end of the previous chunk, frozen; None: no distillation.
        propagation: remembers where labels led in the chunk's rounds before.

    Raises:
        UsageError: there is no window.
    """

    def __init__(
        self,
        module: nn.Module,
        data: TrainingData,
        settings: FedMobileSettings,
        *,
        epochs: int,
        batch: int,
        teacher: nn.Module | None,
        previous: nn.Module | None,
        propagation: Propagation | None = None,
    ) -> None:
        if not len(data):
            raise UsageError("there is no window to train on in this chunk: ingest some first")
        self._module, self._data, self._settings = module, data, settings
        self._epochs, self._batch = epochs, batch
        self._previous = previous
        self._teacher = teacher if len(data.unlabelled) else None
        self._propagated = propagation or Propagation()
        self._shift: torch.Tensor | None = None
        self._prior: torch.Tensor | None = None
        self.labelled = len(data.labelled)
        self._sure = np.zeros(len(data), bool)

    def prepare(self, windows: int, room: int, should_stop: Callable[[], bool]) -> None:
        """The teacher's opinion of all windows, and where their neighbours' labels lead; with less
        room, of fewer windows."""
        self._sure[:] = False
        if self._teacher is not None:
            self._shift = self._opinion_shift(windows, room, should_stop)

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """As the protocol says; without a use for them, unlabelled windows stay out."""
        used = self._teacher is not None or self._previous is not None
        return epochs_of_batches(
            self._data.labelled,
            self._data.unlabelled,
            epochs=self._epochs,
            batch=self._batch,
            unlabelled_batch=self._batch * self._settings.unlabelled_per_labelled if used else 0,
            rng=rng,
        )

    def loss(self, part: Batch, whole: Batch, rng: np.random.Generator) -> torch.Tensor:
        """The part's share of the three losses; one pass through the model for all its views."""
        import torch

        settings = self._settings
        labelled, unlabelled = self._data.inputs[part.labelled], self._data.inputs[part.unlabelled]
        weak = weak_view(unlabelled, rng)
        views = [weak_view(labelled, rng) if settings.augment else labelled]
        if self._previous is not None:
            views.append(weak)
        if self._teacher is not None:
            views.append(strong_view(unlabelled, rng))
        seen = torch.from_numpy(np.concatenate(views))
        logits: torch.Tensor = self._module(seen)
        total: torch.Tensor = logits.new_zeros(())
        split = len(part.labelled)
        if split:
            labels = torch.from_numpy(self._data.labels[part.labelled])
            taught = labelled_loss(logits[:split], labels, self._label_prior(logits.shape[1]))
            total = total + taught / len(whole.labelled)
        if self._previous is not None:
            near = split + len(weak)
            with torch.no_grad():
                before = self._previous(seen[:near])
            kept = distillation_loss(before, logits[:near], settings.temperature)
            total = total + settings.distillation * kept / len(whole)
        if self._teacher is not None and len(weak):
            with torch.no_grad():
                opinion = self._teacher(torch.from_numpy(weak))
                if self._shift is not None:
                    opinion = opinion + self._shift[part.unlabelled]
            agreed, sure = consistency_loss(opinion, logits[-len(weak) :], settings.threshold)
            self._sure[part.unlabelled] = sure.numpy()
            total = total + settings.consistency * agreed / len(whole.unlabelled)
        return total

    def _label_prior(self, classes: int) -> torch.Tensor:
        import torch

        if self._prior is None:
            labels = torch.from_numpy(self._data.labels[self._data.labelled])
            self._prior = label_prior(labels, classes, self._settings.calibration)
        return self._prior

    def _opinion_shift(
        self, at_once: int, room: int, should_stop: Callable[[], bool]
    ) -> torch.Tensor | None:
        """What is added to the teacher's logits of each window, [windows, classes]: alignment, from
        the teacher as it is before the first step, and where the labels of alike windows lead. None
        where it was to stop."""
        import torch

        assert self._teacher is not None
        data, settings = self._data, self._settings
        unlabelled, size = data.unlabelled, min(FORWARD_BATCH, at_once)
        labels = torch.from_numpy(data.labels[data.labelled])
        with torch.no_grad():
            said = []
            for first in range(0, len(unlabelled), size):
                if should_stop():
                    return None
                part = data.inputs[unlabelled[first : first + size]]
                said.append(self._teacher(torch.from_numpy(part)))
            shift = alignment(labels, torch.cat(said), settings.alignment)
        if not settings.propagation or data.inputs.ndim != 2:
            return shift.expand(len(data), -1)
        most = windows_within(room or MOST_BYTES, data.inputs.shape[1], len(shift))
        reached = self._propagated(data.inputs, data.labels, len(shift), most, should_stop)
        opinion = torch.from_numpy(reached).clamp_min(LEAST_REACHED).log()
        present = labels.bincount(minlength=len(shift)) > 0
        if present.any():  # neighbours cannot speak of a class that has no label here
            opinion[:, ~present] = opinion[:, present].mean(dim=1, keepdim=True)
        return shift + settings.propagation * opinion

    def step_done(self) -> None:
        """A moving-mean teacher follows the model, running statistics included."""
        import torch

        if self._teacher is None or self._settings.teacher != "ema":
            return
        with torch.no_grad():
            now = self._module.state_dict()
            for name, held in self._teacher.state_dict().items():
                if held.is_floating_point():
                    held.lerp_(now[name], 1 - self._settings.ema_decay)
                else:
                    held.copy_(now[name])

    def confident(self) -> int:
        """Unlabelled windows that the teacher was sure of when it last saw them."""
        return int(self._sure.sum())

    def extra_bytes(self) -> int:
        """Of the teacher, of the previous model, and of the opinions of all windows."""
        state = self._module.state_dict()
        one: int = sum(t.nbytes for t in state.values())
        models = (self._teacher is not None) + (self._previous is not None)
        if self._teacher is None:
            return one * models
        classes = len(state["classifier.bias"])
        return one * models + OPINIONS * 4 * len(self._data) * classes
