"""A node's membership: signs of life to the server, from a thread of its own.

Training may take minutes, and importing torch alone half a minute on a small device; meanwhile the
server must hear that the node is there, and, when it is asked to end, that it goes.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.federated.daemon.fleet_errors import FleetError, Forgotten, NotAdmitted
from penstock.federated.daemon.pipes import Stop

if TYPE_CHECKING:
    from penstock.federated.daemon.flower_fleet import Fleet

LOG = logging.getLogger(__name__)
LOOK_S = 1.0  # between two looks at whether the end is asked for
BUSY_S = 4.0  # for the main thread to leave by itself
RETRY_S = 2.0


class Lease:
    """Keeps it.

    Args:
        fleet: the connection.
        mark: file with the node's number, touched at each sign of life that the server took; both
            outlive us.
        heartbeat_s: the lease is twice this.
        stop: asks for the end.
    """

    def __init__(self, fleet: Fleet, mark: Path, heartbeat_s: float, stop: Stop) -> None:
        self._fleet, self._mark, self._every, self._stop = fleet, mark, heartbeat_s, stop
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start."""
        try:
            self._mark.write_text(str(self._fleet.node_id), encoding="ascii")
        except OSError as error:  # a full disk: after a crash we wait for the lease to end
            LOG.warning("%s: %s", self._mark, error.strerror)
        self._ended, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop; the lease itself runs on."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=0.1)  # it may be in a call; it sees the end after that
            self._thread = None

    def lost(self) -> bool:
        """Whether the server has said that it does not know us."""
        return self._lost.is_set()

    def remaining(self) -> float:
        """Seconds for which the lease of this device's last process may still run."""
        try:
            age = time.time() - self._mark.stat().st_mtime
        except OSError:
            return 0.0
        return max(0.0, 2 * self._every + 2 - age) if age >= 0 else 0.0

    def number(self) -> int:
        """The number under which this device's last process has a lease that may still run; 0:
        there is none. A clock that was set back says nothing about it."""
        try:
            age = time.time() - self._mark.stat().st_mtime
            text = self._mark.read_text(encoding="ascii")
            return int(text) if age < 2 * self._every + 2 else 0
        except (OSError, ValueError):
            return 0

    def _keep(self) -> None:
        ended, lost = self._ended, self._lost
        next_at = time.monotonic()
        while not ended.wait(min(LOOK_S, max(0.0, next_at - time.monotonic()))):
            if self._stop.asked():
                if not ended.wait(BUSY_S):  # the main thread is deep in something
                    self._fleet.leave()
                    LOG.info("left the federation while the work went on")
                return
            if time.monotonic() < next_at:
                continue
            try:
                self._fleet.heartbeat()
                self._mark.touch()
                pause = self._every / 2 * random.uniform(0.8, 1.0)
            except (Forgotten, NotAdmitted):
                lost.set()
                return
            except (FleetError, OSError) as error:
                LOG.warning("a sign of life did not get through: %s", error)
                pause = RETRY_S
            next_at = time.monotonic() + pause
