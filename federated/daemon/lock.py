"""One process a folder: two daemons must not share a store, and none may be left behind."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import StorageError, UsageError

DAEMON_LOCK, NODE_LOCK = "daemon.lock", "node.lock"
PATIENCE_S = 10.0  # for a node whose supervisor is gone: it leaves by itself
LOOKS, LOOK_S = 20, 0.02  # `holder` has the lock for an instant, which is nobody's process


@contextmanager
def one_process(path: Path) -> Iterator[None]:
    """Hold a lock, with this process's number in it, for the length of a block. The system frees it
    however the process ends.

    Raises:
        UsageError: another process holds it.
        StorageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    try:
        if not _lock(handle):
            raise UsageError(
                f"{path.parent}: a daemon runs on this folder (process {holder(path)}); "
                "a device has one, or another folder in its configuration"
            )
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    for _ in range(LOOKS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(LOOK_S)
    return False


def holder(path: Path) -> int | None:
    """The process that holds the lock; None where nobody does."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two may look at a time
        return None
    except BlockingIOError:
        text = os.read(handle, 32).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(handle)


def end_left_over(path: Path) -> bool:
    """End a node that a killed supervisor left behind: it leaves by itself, or it hangs and is
    killed. Returns whether it had to be killed."""
    until = time.monotonic() + PATIENCE_S
    while (process := holder(path)) is not None:
        if time.monotonic() > until and process > 1:
            try:
                os.kill(process, signal.SIGKILL)
            except OSError:
                return False
            while holder(path) is not None and time.monotonic() < until + PATIENCE_S:
                time.sleep(0.05)
            return True
        time.sleep(0.1)
    return False
