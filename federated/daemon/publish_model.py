"""Makes the federation's newest model live for inference on this device, in a process of its own.

    python -m penstock.federated.daemon.publish_model CONFIG

The exporter takes some 200 MB and seconds; they end with this process, and so does its fault if it
has one. What is published is in the store, so it is done once for each model.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from penstock.errors import PenstockError
from penstock.federated.client.rounds import GLOBAL, TEACHER, StoredModel
from penstock.federated.client.store import Store
from penstock.federated.daemon.config import DeviceConfig, load_config
from penstock.federated.daemon.exit_codes import MISCONFIGURED
from penstock.federated.daemon.log import log_to

LOG = logging.getLogger("penstock.federated.daemon.publish_model")
FACT = "published"  # in the store: run, round and chunk of the model that is live


class Publisher:
    """Starts the process when there is a newer model; one at a time.

    Args:
        config, path: of the device.
        store: where models come in.
    """

    def __init__(self, config: DeviceConfig, path: Path | None, store: Store) -> None:
        self._when, self._path, self._store = config.training.publish, path, store
        self._child: subprocess.Popen[bytes] | None = None
        self._tried: list[object] | None = None

    def look(self) -> None:
        """Called when there is nothing else to do."""
        if self._when == "never":
            return
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return
            if code:
                LOG.error("the model was not made live: code %d, see publish.log", code)
            self._child = None
        due = _due(self._store, self._when)
        if due is None or _name(due) == self._tried:
            return
        self._tried = _name(due)  # one that fails is not tried again; the next one is
        config = "-" if self._path is None else str(self._path)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "penstock.federated.daemon.publish_model", config],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        """The node ends: a half-made version is removed at the next publishing."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait()


def _name(model: StoredModel) -> list[object]:
    return [model.run, model.round_number, model.chunk]


def _due(store: Store, when: str) -> StoredModel | None:
    """The model that ought to be live and is not: of the last round, or of the last chunk's end."""
    model = store.rounds.model(GLOBAL if when == "round" else TEACHER)
    return None if model is None or store.fact(FACT) == _name(model) else model


def main(argv: list[str] | None = None) -> int:
    """Publish what is due. Returns the exit code."""
    (path,) = sys.argv[1:] if argv is None else argv
    try:
        config = load_config(None if path == "-" else Path(path))
        log_to(config.folder / "publish.log", config.daemon.log_bytes)
        with Store.open(config.store, config.storage.disk_bytes) as store:
            model = _due(store, config.training.publish)
            if model is None:
                return 0
            from penstock.federated.client.deploy import LiveModel
            from penstock.federated.models.registry import ModelOptions

            with LiveModel(config.folder / "live") as live:
                made = live.publish(
                    model.arrays, ModelOptions.from_json(model.options), model.ratio
                )
            store.set_fact(FACT, _name(model))
            LOG.info("round %d of run %s is live: %s", model.round_number, model.run, made.file)
            return 0
    except PenstockError as error:
        LOG.error("%s", error)
        return MISCONFIGURED
    except Exception:
        LOG.exception("publishing failed")
        raise


if __name__ == "__main__":
    os.nice(10)  # training and inference come first
    sys.exit(main())
