"""One message from the journal, step by step, until its reply is with the server.

Each step may be the last before a crash; the next process goes on where the journal says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.errors import StorageError
from penstock.federated.client.journal import Entry, Journal
from penstock.federated.daemon.fleet_errors import BadMessage, RunOver, Unreachable
from penstock.federated.daemon.flower_messages import Outgoing, run_app
from penstock.federated.daemon.pipes import Reporter, Stop

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from penstock.federated.daemon.flower_fleet import Fleet

LOG = logging.getLogger(__name__)
MOST_ATTEMPTS = 3  # a message whose work ends the process each time is given up
LATE_S = 3600.0  # after its time a message is kept, for the clock may be wrong


class Worker:
    """Works off open messages.

    Args:
        fleet: to pull parts from and send replies to.
        journal: of the store.
        app: gives the ClientApp; called when there is something for it to do.
    """

    def __init__(
        self,
        fleet: Fleet,
        journal: Journal,
        app: Callable[[], ClientApp],
        stop: Stop,
        report: Reporter,
    ) -> None:
        self._fleet, self._journal, self._app = fleet, journal, app
        self._stop, self._report = stop, report

    def take(self) -> bool:
        """Ask the server for a message; it is in the journal before anything else. Returns whether
        there was one.

        Raises:
            FleetError: see `Fleet.pull`. StorageError: the journal cannot be written.
        """
        message = self._fleet.pull()
        if message is None:
            return False
        self._journal.announce(
            message.id, message.run_id, message.kind, message.expires_at, message.head, message.tree
        )
        LOG.info("message %s: %s for run %d", message.id[:12], message.kind, message.run_id)
        return True

    def work_off(self) -> int:
        """Do what is open, oldest first, until it is done or the end is asked for. Returns how many
        messages ended.

        Raises:
            FleetError: the server cannot be reached, or has forgotten us; what is open stays.
            StorageError: the journal cannot be written; what is open stays.
        """
        done = 0
        for entry in self._journal.open_messages():
            if self._stop.asked():
                break
            try:
                self._advance(entry)
            except RunOver as over:
                LOG.warning("message %s: its run is over: %s", entry.id[:12], over)
                self._journal.end(entry.id, "gone")
            done += 1
        return done

    def send_ready(self) -> None:
        """Send the replies that are ready, and nothing else.

        Raises:
            FleetError, StorageError: as `work_off`.
        """
        for entry in self._journal.open_messages():
            if entry.state == "answered":
                self._send(entry)

    def _advance(self, entry: Entry) -> None:
        if time.time() > entry.expires_at + LATE_S:
            LOG.warning("message %s: its time is over", entry.id[:12])
            self._journal.end(entry.id, "expired")
            return
        if entry.state == "announced":
            self._report.beat("receiving", message=entry.id[:12])
            try:
                parts = self._fleet.pull_parts(entry.run_id, entry.tree, self._beat)
            except BadMessage as bad:
                self._answer(entry, bad)
            else:
                self._journal.hold(entry.id, parts)
        if not entry.confirmed:
            self._fleet.confirm(entry.run_id, entry.id)
            self._journal.confirmed(entry.id)
        if entry.state != "answered":
            self._work(entry)
        ready = self._journal.entry(entry.id)
        if ready is not None and ready.state == "answered":
            self._send(ready)

    def _work(self, entry: Entry) -> None:
        now = self._journal.entry(entry.id)
        if now is None or now.state != "held":
            return
        attempt = self._journal.begin(entry.id)
        if attempt > MOST_ATTEMPTS:
            self._answer(
                entry,
                RuntimeError(
                    f"this device's process ended {attempt - 1} times while it worked on this "
                    "message; it is given up"
                ),
            )
            return
        phase = "loading" if entry.kind == "train" else entry.kind  # then "training", at each step
        self._report.beat(phase, message=entry.id[:12], attempt=attempt)
        self._answer(entry, None)

    def _answer(self, entry: Entry, failure: Exception | None) -> None:
        """Make the reply, and put it into the journal; without a failure the app makes it."""
        began = time.monotonic()
        if failure is not None:
            LOG.error("message %s: %s", entry.id[:12], failure)
            reply = run_app(failure, self._fleet.node_id, entry.head, entry.tree, {})
        else:
            parts = self._journal.parts(entry.id, reply=False)
            try:
                reply = run_app(self._app(), self._fleet.node_id, entry.head, entry.tree, parts)
            except StorageError:
                raise  # it is worked on again when there is room
            except Exception as error:  # a kind of message that is not ours, or a fault
                if not isinstance(error, BadMessage):
                    LOG.exception("message %s", entry.id[:12])
                self._answer(entry, error)
                return
            if self._stop.asked():  # the training was cut short: the next process does it
                self._journal.interrupted(entry.id)
                return
        self._journal.answer(
            entry.id, reply.head, reply.tree, reply.parts, time.monotonic() - began
        )

    def _beat(self) -> None:
        self._report.beat()
        if self._stop.asked():
            raise Unreachable("asked to end while a message came in")

    def _send(self, entry: Entry) -> None:
        self._report.beat("sending", message=entry.id[:12])
        reply = Outgoing(
            entry.reply_head or b"",
            entry.reply_tree or b"",
            self._journal.parts(entry.id, reply=True),
        )
        self._fleet.send(entry.run_id, reply, entry.seconds, self._report.beat)
        self._journal.end(entry.id, "sent")
        LOG.info("message %s: answered after %.2f s of work", entry.id[:12], entry.seconds)
