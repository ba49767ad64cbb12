"""The device's ClientApp for Flower's stock SuperNode: `app`, to be named in a Flower app.

    [tool.flwr.app.components]
    clientapp = "penstock.federated.client.supernode_app:app"

The device is that of the daemon's configuration, which the environment names; the daemon sets it
where [daemon] engine is "supernode". Flower starts a process for each message, so nothing stays
warm.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from penstock.federated.client.client_app import client_app
from penstock.federated.client.participant import Limits, Participant
from penstock.federated.client.store import Store
from penstock.federated.daemon.conditions import readiness
from penstock.federated.daemon.config import load_config
from penstock.federated.daemon.engines import CONFIG_VARIABLE
from penstock.federated.daemon.identity import load_identity


@cache
def participant() -> Participant:
    """The device, once a process.

    Raises:
        PenstockError: its configuration, store or key.
    """
    path = os.environ.get(CONFIG_VARIABLE)
    config = load_config(Path(path) if path else None)
    training = config.training
    return Participant(
        Store.open(config.store, config.storage.disk_bytes),
        load_identity(config.folder).device,
        Limits(training.memory_bytes, training.threads, training.most_ratio, training.most_seconds),
        readiness=lambda: readiness(config.conditions),
    )


app = client_app(participant)
