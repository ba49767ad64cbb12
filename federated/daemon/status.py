"""What the daemon does now: kept by the supervisor, in memory and in one small file."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from penstock.errors import FormatError
from penstock.federated.daemon.lock import DAEMON_LOCK, holder

STATUS = "status.json"
HEALTHY = ("running", "waiting", "receiving", "query", "loading", "training", "evaluate", "sending")
STANDS_OUT = ("sits out", "refused")  # its work does not count; see client/standing.py


class StatusBoard:
    """Facts by name. For several threads.

    Args:
        folder: where the file goes.
        silent_s: after so long without a sign of life a node is not healthy.
    """

    def __init__(self, folder: Path, silent_s: float) -> None:
        self._path, self._silent_s = folder / STATUS, silent_s
        self._lock = threading.Lock()
        self._heard = time.monotonic()
        self._facts: dict[str, Any] = {"pid": os.getpid(), "started_at": _now(), "restarts": 0}

    def heard(self, **facts: Any) -> None:
        """The node lives, and says this."""
        with self._lock:
            self._heard = time.monotonic()
        self.put(**facts)

    def put(self, **facts: Any) -> None:
        """Change facts; the file is written where the phase or its reason has changed."""
        with self._lock:
            before = {name: self._facts.get(name) for name in ("phase", "reason", "node_pid")}
            self._facts |= facts
            changed = any(self._facts.get(name) != value for name, value in before.items())
            if changed:
                if self._facts.get("phase") != before["phase"]:
                    self._facts["since"] = _now()
                self._write()

    def count_restart(self) -> None:
        """A node was started again."""
        with self._lock:
            self._facts["restarts"] += 1

    def facts(self) -> dict[str, Any]:
        """All of it."""
        with self._lock:
            silent = time.monotonic() - self._heard
            well = self._facts.get("phase") in HEALTHY and silent < self._silent_s
            return self._facts | {
                "silent_s": round(silent, 1),
                "healthy": well and self._facts.get("standing") not in STANDS_OUT,
            }

    def _write(self) -> None:
        temporary = self._path.with_name(f".{STATUS}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(self._facts, indent=1), encoding="utf-8")
            os.replace(temporary, self._path)
        except OSError:
            pass  # a full disk: the endpoint still says it


def read_status(folder: Path) -> dict[str, Any]:
    """What the daemon of a folder does; `running` says whether there is one.

    Raises:
        FormatError: the file is damaged.
    """
    path = folder / STATUS
    running = holder(folder / DAEMON_LOCK) is not None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        facts = {}
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: damaged: {error}; it is written anew by the daemon") from error
    return facts | {"running": running} | ({} if running else {"phase": "not running"})


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
