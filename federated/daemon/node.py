"""The node: one warm process that takes messages from the SuperLink and answers them.

    python -m penstock.federated.daemon.node CONFIG [--superlink HOST:PORT]

It is started by the supervisor. Flower's stock SuperNode starts a new Python for each message; here
the model stays in memory from one round to the next. Nothing that the SuperLink sends is executed:
messages carry numbers and settings, the code is this package's.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from pathlib import Path

from penstock.errors import PenstockError, StorageError
from penstock.federated.client.journal import Journal
from penstock.federated.client.memory import resident_bytes
from penstock.federated.client.standing import Standings
from penstock.federated.client.store import Store
from penstock.federated.daemon.config import DeviceConfig, load_config, read_certificates
from penstock.federated.daemon.exit_codes import LEFT, MISCONFIGURED, REOPEN, UNLOAD
from penstock.federated.daemon.fleet_errors import (
    ClockWrong,
    FleetError,
    ForeignVersion,
    Forgotten,
    NotAdmitted,
)
from penstock.federated.daemon.identity import Identity, load_identity
from penstock.federated.daemon.lease import Lease
from penstock.federated.daemon.lock import NODE_LOCK, one_process
from penstock.federated.daemon.log import log_to
from penstock.federated.daemon.pipes import Reporter, Stop

LOG = logging.getLogger("penstock.federated.daemon.node")  # not "__main__"
BUSY_S = 15.0  # after a message, the next is asked for often
MOST_WAIT_S = 30.0  # between two tries to reach the server
STORAGE_WAIT_S = 15.0
HEARTBEAT_FILE = "heartbeat"  # touched at each sign of life that the server took


class Node:
    """A device in a federation, until it is asked to stop.

    Args:
        config: of the device; path: the file it is from.
        identity: its key.
        store: its data.
        stop: asks it to end.
        report: hears what it does.
    """

    def __init__(
        self,
        config: DeviceConfig,
        path: Path | None,
        identity: Identity,
        store: Store,
        stop: Stop,
        report: Reporter,
    ) -> None:
        from penstock.federated.client.client_app import client_app
        from penstock.federated.client.participant import Limits, Participant
        from penstock.federated.daemon.conditions import readiness
        from penstock.federated.daemon.flower_fleet import Fleet
        from penstock.federated.daemon.publish_model import Publisher
        from penstock.federated.daemon.work import Worker

        self._config, self._identity, self._stop, self._report = config, identity, stop, report
        self._store, self._standings = store, Standings(store.database)
        link, training = config.superlink, config.training
        self._fleet = Fleet(
            link.address,
            identity.key,
            certificates=read_certificates(config, path),
            insecure=link.insecure,
            heartbeat_s=link.heartbeat_s,
        )
        participant = Participant(
            store,
            identity.device,
            Limits(
                training.memory_bytes, training.threads, training.most_ratio, training.most_seconds
            ),
            readiness=lambda: readiness(config.conditions),
            should_stop=self._should_stop,
        )
        self._publisher = Publisher(config, path, store)
        app = client_app(lambda: participant)
        self._worker = Worker(self._fleet, Journal(store.database), lambda: app, stop, report)
        self._lease = Lease(self._fleet, config.folder / HEARTBEAT_FILE, link.heartbeat_s, stop)

    def run(self) -> int:
        """Work until asked to stop, or until torch is to leave the memory. Returns the exit code.

        Raises:
            PenstockError: the configuration cannot work.
        """
        joined, wait, last_work = False, 1.0, time.monotonic()
        try:
            while not self._stop.asked():
                try:
                    if not joined:
                        self._report.beat("connecting")
                        self._join()
                        joined = True
                    if self._lease.lost():
                        raise Forgotten("the server has forgotten this node")
                    if self._worker.work_off() or self._worker.take():
                        last_work = time.monotonic()
                        wait = 1.0
                        continue
                    wait = 1.0
                    if self._store.database.must_reopen():
                        return self._reopen()
                    self._publisher.look()
                    if self._is_to_unload(last_work):
                        return UNLOAD
                    self._idle(last_work)
                except Forgotten as lost:
                    LOG.warning("joining again: %s", lost)
                    self._lease.end()
                    joined = False
                    self._stop.wait(wait * random.uniform(0.5, 1.0))
                    wait = min(MOST_WAIT_S, wait * 2)
                except NotAdmitted as refused:
                    self._wait_for_admission(refused)
                except ClockWrong as wrong:
                    LOG.error("%s", wrong)
                    self._report.beat("clock wrong", reason=str(wrong))
                    self._stop.wait(MOST_WAIT_S)
                except ForeignVersion:
                    raise
                except FleetError as down:
                    LOG.warning("cannot reach the server: %s", down)
                    self._report.beat("offline", reason=str(down)[:500])
                    self._stop.wait(wait * random.uniform(0.5, 1.0))
                    wait = min(MOST_WAIT_S, wait * 2)
                except StorageError as full:
                    LOG.error("%s", full)
                    if self._store.database.must_reopen():
                        return self._reopen()
                    self._report.beat("no storage", reason=str(full)[:500])
                    self._stop.wait(STORAGE_WAIT_S)
            return LEFT
        finally:
            self._leave(joined)

    def _reopen(self) -> int:
        LOG.error("the store is damaged, or was moved aside by another process: starting again")
        return REOPEN

    def _join(self) -> None:
        number = self._fleet.join(self._lease.number())
        self._lease.begin()
        LOG.info("joined %s as node %d", self._config.superlink.address, number)
        self._report.beat("waiting", node=str(number), reason="")

    def _idle(self, last_work: float) -> None:
        """Wait before the next question: shortly after work, longer later."""
        daemon = self._config.daemon
        quiet = time.monotonic() - last_work - BUSY_S
        grown = daemon.poll_busy_s + max(0.0, quiet) * 0.1
        self._report.beat(
            "waiting",
            message="",
            reason="",
            resident=resident_bytes() >> 20,
            **self._standings.now().facts,
        )
        self._stop.wait(min(max(daemon.poll_busy_s, grown), daemon.poll_idle_s))

    def _is_to_unload(self, last_work: float) -> bool:
        after = self._config.daemon.unload_after_s
        return bool(after) and "torch" in sys.modules and time.monotonic() - last_work > after

    def _wait_for_admission(self, refused: NotAdmitted) -> None:
        left = self._lease.remaining()
        if refused.lease or left > 0:
            text = (
                "the server still counts this device's last process as here; it admits the new one "
                f"when that lease ends, in {max(left, 1):.0f} s at most"
            )
            self._report.beat("waiting for the lease", reason=text)
            LOG.warning("%s", text)
            self._stop.wait(min(max(left, 1.0), 5.0))
            return
        text = (
            f"the server refuses this device's key ({refused}). Copy "
            f"{self._identity.public_key} into the server's superlink.node_keys folder and start "
            "the server again with --resume (Flower's own: flwr supernode register). A copy of "
            "this folder that runs elsewhere has the same key: only one of them is admitted"
        )
        self._report.beat("not admitted", reason=text)
        LOG.error("%s", text)
        self._stop.wait(MOST_WAIT_S * random.uniform(0.5, 1.0))

    def _should_stop(self) -> bool:
        self._report.beat("training")
        return self._stop.asked()

    def _leave(self, joined: bool) -> None:
        self._report.beat("leaving")
        self._publisher.end()
        self._lease.end()
        if joined:
            try:
                self._worker.send_ready()
            except (FleetError, PenstockError) as error:
                LOG.warning("a reply stays in the journal: %s", error)
            self._fleet.leave()
        self._fleet.close()


def main(argv: list[str] | None = None) -> int:
    """Run the node of a configuration; the supervisor's child. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="node")
    parser.add_argument("config", help="TOML file; '-': none")
    parser.add_argument("--superlink")
    parser.add_argument("--report", type=int, help="file descriptor to report to")
    parser.add_argument("--lifeline", type=int, help="file descriptor that ends with its parent")
    asked = parser.parse_args(argv)
    stop, report = Stop(asked.lifeline), Reporter(asked.report)
    stop.listen()
    try:
        path = None if asked.config == "-" else Path(asked.config)
        config = load_config(path, superlink=asked.superlink)
        log_to(config.folder / "node.log", config.daemon.log_bytes)
        identity = load_identity(config.folder)
        report.beat("starting", device=identity.device)
        with (
            one_process(config.folder / NODE_LOCK),
            Store.open(config.store, config.storage.disk_bytes) as store,
        ):
            if store.salvage is not None:
                LOG.error("%s", store.salvage)
                report.beat("starting", salvage=str(store.salvage))
            return Node(config, path, identity, store, stop, report).run()
    except (PenstockError, ForeignVersion) as error:
        LOG.error("%s", error)
        report.beat("misconfigured", reason=str(error)[:2000])
        return MISCONFIGURED
    except Exception:
        LOG.exception("the node ends by a fault")
        raise


if __name__ == "__main__":
    sys.exit(main())
