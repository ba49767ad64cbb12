"""Ways to hurt a federation of real processes: network, disks, files. Most need root."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from benchmarks.federated_daemon_processes import Federation


@contextmanager
def namespace() -> Iterator[list[str]]:
    """A network namespace with one link to here; what a command begins with to run in it.

    Raises:
        RuntimeError: it is not allowed here.
    """
    try:
        _ip("netns", "add", "fl-device")
        _ip(
            "link",
            "add",
            "fl-here",
            "type",
            "veth",
            "peer",
            "name",
            "fl-there",
            "netns",
            "fl-device",
        )
        _ip("addr", "add", "10.99.0.1/24", "dev", "fl-here")
        set_link("up")
        for words in (
            ("addr", "add", "10.99.0.2/24", "dev", "fl-there"),
            ("link", "set", "fl-there", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", "fl-device", *words)
        yield ["ip", "netns", "exec", "fl-device"]
    finally:
        with suppress(RuntimeError):
            _ip("link", "del", "fl-here")
        with suppress(RuntimeError):
            _ip("netns", "del", "fl-device")


def set_link(state: str) -> None:
    """The namespace's link "up" or "down"."""
    _ip("link", "set", "fl-here", state)


def control_status(enter: list[str], federation: Federation) -> int:
    """HTTP status that Control gives to a request from the namespace."""
    code = (
        "import ssl,urllib.request as u,urllib.error as e\n"
        f"c=ssl.create_default_context(cafile='{federation.run_folder}/certificates/ca.pem')\n"
        f"try: print(u.urlopen('https://10.99.0.1:{federation.port}/v1/control/list-runs',"
        "data=b'',context=c,timeout=20).status)\n"
        "except e.HTTPError as x: print(x.code)\n"
    )
    done = subprocess.run([*enter, sys.executable, "-c", code], capture_output=True, text=True)
    return int(done.stdout or 0)


@contextmanager
def small_disks(paths: list[Path]) -> Iterator[None]:
    """File systems of 12 MB at these folders.

    Raises:
        RuntimeError: it is not allowed here.
    """
    mounted: list[Path] = []
    try:
        for path in paths:
            path.mkdir(parents=True, exist_ok=True)
            _run("mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(path))
            mounted.append(path)
        yield
    finally:
        for path in mounted:
            with suppress(RuntimeError):
                _run("umount", "-l", str(path))


def fill(path: Path) -> None:
    """Write until there is no room."""
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def settle(database: Path) -> None:
    """Bring what a killed process left in the log into the database's file: pages of the log stand
    before those of the file, and would hide a damage there."""
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def damage(path: Path, at: int | None = None) -> None:
    """Overwrite a part of a file, as a bad sector would.

    Args:
        at: where; None: in the middle. What SQLite keeps there may be a row's content, whose damage
            no check of a database finds; at 100, behind its header, is always structure.
    """
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(size // 2 if at is None else at)
        file.write(b"\xa5" * min(512, size // 4))


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
