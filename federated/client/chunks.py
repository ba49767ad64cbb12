"""The turn of a time chunk on the device: what is kept of the old one, and what is deleted."""

from __future__ import annotations

import logging

from penstock.federated.client.rounds import GLOBAL
from penstock.federated.client.store import Store
from penstock.federated.fedmobile.settings import FedMobileSettings
from penstock.federated.protocol import TrainTask
from penstock.federated.training.trainer import Trainer

LOG = logging.getLogger(__name__)


def open_chunk(store: Store, task: TrainTask, trainer: Trainer | None) -> None:
    """Open the task's chunk. The older windows go, but exemplars where the federation keeps some.

    Exemplars are chosen by herding with the last model that is here; without one, none are kept.
    """
    ends = store.fact("run") == task.run and task.chunk > store.chunk
    if ends and trainer is not None:
        per_class = _exemplars_per_class(task)
        if per_class:
            _choose_exemplars(store, trainer, per_class)
    deleted = store.begin_chunk(task.run, task.chunk)
    if deleted:
        LOG.info("chunk %d begins: %d windows of older chunks deleted", task.chunk, deleted)


def _exemplars_per_class(task: TrainTask) -> int:
    if task.algorithm != "fedmobile":
        return 0
    return FedMobileSettings.from_json(task.settings, "the server's task").exemplars_per_class


def _choose_exemplars(store: Store, trainer: Trainer, per_class: int) -> None:
    from penstock.federated.fedmobile.exemplars import select_exemplars

    model = store.rounds.model(GLOBAL)
    if model is None or model.ratio != trainer.ratio or model.options != trainer.model.to_json():
        return
    numbers, data = store.labelled_windows()
    if len(data):
        features = trainer.features(model.arrays, data.inputs)
        chosen = select_exemplars(features, data.labels, per_class)
        store.set_exemplars([numbers[i] for i in chosen])
