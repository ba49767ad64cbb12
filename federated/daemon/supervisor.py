"""The supervisor: a small process that keeps the node alive, and ends it when it hangs.

It imports neither Flower nor numpy, so that it costs little and cannot be brought down by what it
watches. A node that ends is started again after a growing, jittered pause; one that falls silent or
outgrows its memory is killed; SIGTERM lets it leave the federation first.
"""

from __future__ import annotations

import json
import logging
import os
import random
import select
import signal
import subprocess
import time
from pathlib import Path

from penstock.federated.client.memory import resident_bytes
from penstock.federated.daemon.config import DeviceConfig, read_certificates
from penstock.federated.daemon.engines import Engine, choose_engine
from penstock.federated.daemon.exit_codes import MISCONFIGURED, UNLOAD
from penstock.federated.daemon.health import HealthServer
from penstock.federated.daemon.lock import DAEMON_LOCK, NODE_LOCK, end_left_over, one_process
from penstock.federated.daemon.log import log_to
from penstock.federated.daemon.pipes import LineReader, Stop
from penstock.federated.daemon.status import StatusBoard

LOG = logging.getLogger(__name__)
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
SETTLED_S = 60.0  # a node that lived so long begins with a short pause again
GRACE_S = 15.0  # to leave after SIGTERM: an answer of the server may take ten
LOOK_S = 5.0  # between two looks at a quiet node
IDLE_BYTES = 640 << 20  # that Python, Flower and torch take without any training


class Supervisor:
    """Runs one device's node until it is asked to stop.

    Args:
        config: of the device, checked.
        path: the file it is from; the node reads it again. None: there is none.
        superlink: the address, where it replaces the file's.
    """

    def __init__(self, config: DeviceConfig, path: Path | None, superlink: str | None) -> None:
        self._config = config
        self._engine: Engine = choose_engine(config, path, superlink)
        self.stop = Stop()
        self.status = StatusBoard(config.folder, config.daemon.hang_s)
        self._errors: list[str] = []

    def run(self) -> int:
        """Keep the node alive. Returns the exit code: 0 after a clean stop.

        Raises:
            UsageError: another daemon runs on this folder, or the health port is taken.
            StorageError: the folder cannot be written.
        """
        daemon = self._config.daemon
        with one_process(self._config.folder / DAEMON_LOCK):
            log_to(self._config.folder / "daemon.log", daemon.log_bytes)
            if end_left_over(self._config.folder / NODE_LOCK):
                LOG.warning("killed a node that a daemon before this one had left behind")
            health = None
            if daemon.health_port >= 0:
                health = HealthServer(daemon.health_port, self.status.facts)
                self.status.put(health=health.address)
            LOG.info("supervising: %s", self._engine.name)
            try:
                self._keep_alive()
            finally:
                if health is not None:
                    health.close()
                self.status.put(phase="stopped", node_pid=None)
                LOG.info("stopped")
        return 0

    def _keep_alive(self) -> None:
        pause = FIRST_PAUSE_S
        while not self.stop.asked():
            reason = self._engine.waits()
            if reason:
                self.status.put(phase="not now", reason=reason)
                self.stop.wait(LOOK_S)
                continue
            began = time.monotonic()
            code = self._one_life()
            if self.stop.asked():
                return
            lived = time.monotonic() - began
            if self._engine.waits():
                continue  # it was asked to leave, for now
            self.status.count_restart()
            if code == UNLOAD:
                LOG.info("the node was idle: a fresh one without torch takes its place")
                continue
            if code == MISCONFIGURED:
                pause = MOST_PAUSE_S
            elif lived > SETTLED_S:
                pause = FIRST_PAUSE_S
            wait = pause * random.uniform(0.5, 1.0)
            LOG.error(
                "the node ended with code %d after %.1f s; again in %.1f s%s",
                code,
                lived,
                wait,
                "".join(f"\n{line}" for line in self._errors[-20:]),
            )
            self.status.put(
                phase="misconfigured" if code == MISCONFIGURED else "restarting",
                node_pid=None,
                last_exit=code,
            )
            self.stop.wait(wait)
            pause = min(MOST_PAUSE_S, pause * 2)

    def _one_life(self) -> int:
        """Start a node and watch it to its end. Returns its exit code, negative for a signal."""
        reports, their_reports = os.pipe()
        their_lifeline, lifeline = os.pipe()
        self._errors = []
        try:
            child = subprocess.Popen(
                self._engine.command(their_reports, their_lifeline),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(their_reports, their_lifeline),
                env=os.environ | self._engine.environment(),
                start_new_session=True,  # Ctrl-C in a terminal reaches us alone
            )
        except OSError as error:
            LOG.error("the node cannot be started: %s", error)
            for end in (reports, lifeline):
                os.close(end)
            return MISCONFIGURED
        finally:
            os.close(their_reports)
            os.close(their_lifeline)
        try:
            self.status.heard(phase="starting", node_pid=child.pid)
            return self._watch(child, reports)
        finally:
            os.close(lifeline)
            os.close(reports)
            assert child.stderr is not None
            child.stderr.close()
            _end_group(child)

    def _watch(self, child: subprocess.Popen[bytes], reports: int) -> int:
        assert child.stderr is not None
        lines, errors = LineReader(reports), LineReader(child.stderr.fileno())
        heard, asked_at = time.monotonic(), 0.0
        most = self._most_bytes()
        while True:
            open_pipes = [reader.pipe for reader in (lines, errors) if not reader.ended]
            select.select([self.stop.wake, *open_pipes], [], [], 1.0 if asked_at else LOOK_S)
            now = time.monotonic()
            for line in lines.lines():
                heard = now
                self._hear(line)
            if not self._engine.reports:
                self.status.heard(phase="running", reason="")
            self._errors = (self._errors + errors.lines())[-50:]
            code = child.poll()
            if code is not None:
                return code
            if lines.ended and errors.ended:
                self.stop.wait(0.05)  # it closed both: it is about to end
            if self.stop.asked() and not asked_at:
                asked_at = now
                self.stop.drain()
                self.status.put(phase="leaving")
                child.send_signal(signal.SIGTERM)
            if asked_at and now - asked_at > GRACE_S:
                LOG.error("the node did not leave within %.0f s: killed", GRACE_S)
                child.kill()
            elif self._engine.reports and now - heard > self._config.daemon.hang_s:
                LOG.error("the node hangs: silent for %.0f s, killed", now - heard)
                child.kill()
            elif most and resident_bytes(child.pid) > most:
                LOG.error("the node takes more than %d MiB of memory: killed", most >> 20)
                child.kill()
            elif not asked_at and self._engine.waits():
                LOG.info("not now: %s", self._engine.waits())
                child.send_signal(signal.SIGTERM)

    def _hear(self, line: str) -> None:
        try:
            facts = json.loads(line)
            self.status.heard(**{str(name): value for name, value in facts.items()})
        except (ValueError, TypeError, AttributeError):
            LOG.warning("the node said %r", line[:200])

    def _most_bytes(self) -> int:
        budget = self._config.training.memory_bytes
        return IDLE_BYTES + budget + budget // 2 if budget else 0


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Whatever the node has started ends with it."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    child.wait()


def supervise(config: DeviceConfig, path: Path | None, superlink: str | None) -> int:
    """Run the daemon in this process until SIGTERM or SIGINT. Returns the exit code.

    Raises:
        StorageError: the file of authorities cannot be read.
        UsageError: it holds none. Else as `Supervisor.run`.
    """
    read_certificates(config, path)
    supervisor = Supervisor(config, path, superlink)
    supervisor.stop.listen()
    return supervisor.run()
