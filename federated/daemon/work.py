"""One message from the journal, step by step, until its reply is with the server.

Each step may be the last before a crash; the next process goes on where the journal says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from penstock.errors import StorageError
from penstock.federated.client.journal import Entry, Journal
from penstock.federated.daemon.fleet_errors import (
    BadMessage,
    FleetError,
    NotTaken,
    RunOver,
    ServerFault,
    Unreachable,
)
from penstock.federated.daemon.flower_messages import Outgoing, run_app
from penstock.federated.daemon.pipes import Reporter, Stop

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from penstock.federated.daemon.flower_fleet import Fleet, Incoming

LOG = logging.getLogger(__name__)
MOST_ATTEMPTS = 3  # a message whose work ends the process each time is given up
MOST_PAUSE_S = 60.0  # between two tries of a message that the server fails at
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
        self._handed_out: Incoming | None = None  # and not in the journal: an ingest holds it
        self._sizes: dict[str, int] = {}  # of a message that did not fit
        self._faults: dict[str, tuple[int, float]] = {}  # tries, and when to try again

    def take(self) -> bool:
        """Ask the server for a message; it is in the journal before anything else. Returns whether
        there was one.

        Raises:
            FleetError: see `Fleet.pull`. StorageError: there is no room for a message, and the
                server was not asked, for it hands each out once; or the journal cannot be written
                now, and the message is kept for the next call.
        """
        if self._handed_out is None:
            self._journal.check_room()
            self._handed_out = self._fleet.pull()
        message = self._handed_out
        if message is None:
            return False
        self._journal.announce(
            message.id, message.run_id, message.kind, message.expires_at, message.head, message.tree
        )
        self._handed_out = None
        LOG.info("message %s: %s for run %d", message.id[:12], message.kind, message.run_id)
        return True

    def work_off(self) -> int:
        """Do what is open, oldest first, until it is done or the end is asked for. A message that
        the server fails at waits, and the others do not. Returns how many ended.

        Raises:
            FleetError: the server cannot be reached, or has forgotten us; what is open stays.
            StorageError: the journal cannot be written; what is open stays.
        """
        done = 0
        for entry in self._journal.open_messages():
            if self._stop.asked():
                break
            if time.monotonic() >= self._faults.get(entry.id, (0, 0.0))[1]:
                done += self._step(entry, self._advance)
        return done

    def send_ready(self) -> None:
        """Send the replies that are ready, and nothing else.

        Raises:
            FleetError, StorageError: as `work_off`.
        """
        for entry in self._journal.open_messages():
            if entry.state == "answered":
                self._step(entry, self._send)

    def _step(self, entry: Entry, step: Callable[[Entry], None]) -> bool:
        """Whether it is done; if not, the server failed at it, and it has its next try later.

        A SuperLink that was started anew without a database fails at whatever names a run that it
        does not know, one whose disk is full at everything for a while.
        """
        try:
            step(entry)
        except RunOver as over:
            LOG.warning("message %s: its run is over: %s", entry.id[:12], over)
            self._journal.end(entry.id, "gone")
        except NotTaken as refused:
            LOG.warning("message %s: answered in vain: %s", entry.id[:12], refused)
            self._journal.end(entry.id, "gone")
        except ServerFault as fault:
            tries = self._faults.get(entry.id, (0, 0.0))[0]
            pause = min(MOST_PAUSE_S, 2.0**tries)
            self._faults[entry.id] = tries + 1, time.monotonic() + pause
            LOG.warning("message %s: again in %.0f s: %s", entry.id[:12], pause, fault)
            return False
        self._faults.pop(entry.id, None)
        return True

    def _advance(self, entry: Entry) -> None:
        if time.time() > entry.expires_at + LATE_S:
            self._expire(entry)
            return
        if entry.state == "announced":
            self._receive(entry)
        if not entry.confirmed:
            self._fleet.confirm(entry.run_id, entry.id)
            self._journal.confirmed(entry.id)
        if entry.state != "answered":
            self._work(entry)
        ready = self._journal.entry(entry.id)
        if ready is not None and ready.state == "answered":
            self._send(ready)

    def _receive(self, entry: Entry) -> None:
        """Fetch the parts. A message too large for this device ends its process already here."""
        self._report.beat("receiving", message=entry.id[:12])
        self._journal.check_room(self._sizes.get(entry.id, 0))
        if not self._begin(entry):
            return
        try:
            parts = self._fleet.pull_parts(entry.run_id, entry.tree, self._beat)
            # Should they not fit, they are not downloaded again before there is room.
            self._sizes = {entry.id: sum(map(len, parts.values()))}
            self._journal.hold(entry.id, parts)
            self._sizes = {}
        except BadMessage as bad:
            self._answer(entry, bad)
        except (FleetError, StorageError):
            with suppress(StorageError):
                self._journal.interrupted(entry.id)
            raise
        else:
            self._journal.interrupted(entry.id)  # the work on it has tries of its own

    def _begin(self, entry: Entry) -> int:
        """How often work on it was begun, now included; 0: too often, and it is given up."""
        # Room for the trained model, here and in the reply: without it the training would be lost.
        self._journal.check_room(2 * self._journal.nbytes(entry.id))
        attempt = self._journal.begin(entry.id)
        if attempt <= MOST_ATTEMPTS:
            return attempt
        text = (
            f"this device's process ended {attempt - 1} times while it worked on this message; it "
            "is given up"
        )
        self._answer(entry, RuntimeError(text))
        return 0

    def _expire(self, entry: Entry) -> None:
        """End what is too late, unless it is the clock that is wrong: the server then says so."""
        self._fleet.heartbeat()
        if entry.state == "answered":
            try:
                self._send(entry)
                return
            except Unreachable as error:  # it had its last try
                LOG.warning("message %s: %s", entry.id[:12], error)
        LOG.warning("message %s: its time is over", entry.id[:12])
        self._journal.end(entry.id, "expired")

    def _work(self, entry: Entry) -> None:
        now = self._journal.entry(entry.id)
        if now is None or now.state != "held":
            return
        attempt = self._begin(entry)
        if not attempt:
            return
        phase = "loading" if entry.kind == "train" else entry.kind  # then "training", at each step
        self._report.beat(phase, message=entry.id[:12], attempt=attempt)
        try:
            self._answer(entry, None)
        except StorageError:  # full or busy is no crash: that attempt does not count
            with suppress(StorageError):
                self._journal.interrupted(entry.id)
            raise

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
