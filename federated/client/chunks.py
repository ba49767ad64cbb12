"""The turn of a time chunk on the device: what is kept of the old one, and what is deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable

from penstock.errors import RefusedUpdateError
from penstock.federated.client.rounds import GLOBAL
from penstock.federated.client.store import Store
from penstock.federated.fedmobile.settings import FedMobileSettings
from penstock.federated.models.registry import ModelOptions
from penstock.federated.protocol import TrainTask
from penstock.federated.training.trainer import Trainer

LOG = logging.getLogger(__name__)


def open_chunk(
    store: Store,
    task: TrainTask,
    warm: Callable[[ModelOptions, float], Trainer],
    most_bytes: int = 0,
) -> None:
    """Open the task's chunk. The older windows go, but exemplars where the federation keeps some.

    Exemplars are chosen by herding with the last model that is here; without one, none are kept.

    Args:
        warm: gives a trainer; at the turn of a chunk the process has mostly just begun and has
            none yet.
        most_bytes: of windows that exemplars are chosen from; 0: all.

    Raises:
        RefusedUpdateError: a window that would be in the new chunk has a label that the task's
            model does not know; nothing was deleted.
        StorageError: the store cannot be read or written.
    """
    options = ModelOptions.from_json(task.model, "the server's task")
    most = store.most_label(task.run, task.chunk)
    if most >= options.classes:
        raise RefusedUpdateError(
            f"the data here has label {most}, the model {options.name} knows {options.classes} "
            f"classes (0 to {options.classes - 1})"
        )
    if store.fact("run") == task.run and task.chunk > store.chunk:
        per_class = exemplars_per_class(task)
        if per_class:
            _choose_exemplars(store, warm, per_class, most_bytes)
    deleted = store.begin_chunk(task.run, task.chunk)
    if deleted:
        LOG.info("chunk %d begins: %d windows of older chunks deleted", task.chunk, deleted)


def exemplars_per_class(task: TrainTask) -> int:
    """How many the federation keeps.

    Raises:
        UsageError: the task's settings cannot be read.
    """
    if task.algorithm != "fedmobile":
        return 0
    return FedMobileSettings.from_json(task.settings, "the server's task").exemplars_per_class


def _choose_exemplars(
    store: Store,
    warm: Callable[[ModelOptions, float], Trainer],
    per_class: int,
    most_bytes: int,
) -> None:
    from penstock.federated.fedmobile.exemplars import select_exemplars

    model = store.rounds.model(GLOBAL)
    if model is None:
        LOG.warning("no exemplars are kept: there is no model here to choose them by")
        return
    numbers, data = store.labelled_windows(most_bytes)
    if len(data):
        trainer = warm(ModelOptions.from_json(model.options, "the store"), model.ratio)
        features = trainer.features(model.arrays, data.inputs)
        chosen = select_exemplars(features, data.labels, per_class)
        store.set_exemplars([numbers[i] for i in chosen])
