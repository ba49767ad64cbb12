"""SuperLink's files and processes: what is checked before it starts, and what is left after it."""

from __future__ import annotations

import http.server
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import PenstockError, UsageError
from penstock.federated.server import superlink as superlink_module
from penstock.federated.server.app_folder import write_app
from penstock.federated.server.processes import descendants, stop
from penstock.federated.server.settings import SuperLinkSettings
from penstock.federated.server.superlink import SuperLink

PLAIN = SuperLinkSettings(insecure=True, database=True)


def link(folder: Path, settings: SuperLinkSettings, notes: list[str] | None = None) -> SuperLink:
    (folder / "flower").mkdir(exist_ok=True)
    return SuperLink(settings, folder / "flower", (notes if notes is not None else []).append)


def test_certificates_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"certificates/server\.pem is not there.*--make-cert"):
        link(tmp_path, SuperLinkSettings())


def test_without_a_key_nothing_is_started(tmp_path: Path) -> None:
    mine = secured(tmp_path)
    for lack in ("holds no \\*.pub", "is not there"):
        with pytest.raises(UsageError, match=f"keys {lack}.*`penstock federated client --key`"):
            mine.start()
        if (tmp_path / "keys").exists():
            (tmp_path / "keys").rmdir()
    mine.settings = replace(mine.settings, node_keys="")
    with pytest.raises(UsageError, match="node_keys is not set"):
        mine.start()
    assert mine.process is None and not any(mine.folder.iterdir())


def secured(folder: Path, notes: list[str] | None = None) -> SuperLink:
    """With keys, a database, and files in the place of certificates."""
    paths = {name: folder / f"{name}.pem" for name in ("certificate", "key", "authority")}
    for path in paths.values():
        path.write_bytes(b"")
    keys = folder / "keys"
    keys.mkdir(exist_ok=True)
    settings = SuperLinkSettings(
        database=True,
        node_keys=str(keys),
        certificate=str(paths["certificate"]),
        key=str(paths["key"]),
        authority=str(paths["authority"]),
    )
    return link(folder, settings, notes)


def registering(mine: SuperLink, answers: Callable[[list[str]], dict[str, Any]]) -> list[str]:
    """Register the keys; the names of those that SuperLink was asked to let in."""
    asked: list[str] = []

    def commands(given: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        asked.extend(words[-1] for words in given)
        return [answers(list(words)) for words in given]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mine, "_commands", commands)
        mine._register_keys()
    return asked


def database_of(mine: SuperLink) -> Path:
    path = mine.folder / "superlink.db"
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE IF NOT EXISTS node (id INTEGER)")
    return path


def yes(words: list[str]) -> dict[str, Any]:
    return {"success": True, "node-id": "17"}


def test_a_key_that_is_taken_away_is_not_let_in_by_the_database(tmp_path: Path) -> None:
    notes: list[str] = []
    mine = secured(tmp_path, notes)
    for name in "ab":
        (tmp_path / "keys" / f"{name}.pub").write_text(f"key {name}")
    assert registering(mine, yes) == ["a", "b"]
    database = database_of(mine)
    mine._mend_database()
    assert database.exists() and registering(mine, yes) == [] and notes == []
    (tmp_path / "keys" / "a.pub").unlink()
    mine._mend_database()
    assert not database.exists() and "keys were taken away: a.pub" in notes[0]
    assert registering(mine, yes) == ["b"]
    database_of(mine)
    (tmp_path / "keys" / "a.pub").write_text("key a")  # it may come back
    mine._mend_database()
    assert database.exists() and registering(mine, yes) == ["a"]


def test_a_key_that_goes_while_superlink_starts_is_gone_at_the_next_start(tmp_path: Path) -> None:
    mine = secured(tmp_path)
    (tmp_path / "keys" / "a.pub").write_text("key a")
    registering(mine, yes)
    database = database_of(mine)
    mine._mend_database()
    (tmp_path / "keys" / "a.pub").unlink()
    registering(mine, yes)
    mine._mend_database()
    assert not database.exists()


@pytest.mark.parametrize("fails", ["said", "raised"])
def test_a_registration_that_fails_is_not_forgotten(fails: str, tmp_path: Path) -> None:
    notes: list[str] = []
    mine = secured(tmp_path, notes)
    for name in "ab":
        (tmp_path / "keys" / f"{name}.pub").write_text(f"key {name}")

    def half(words: list[str]) -> dict[str, Any]:
        if words[-1] == "a":
            return {"success": True}
        if fails == "raised":
            raise PenstockError("flwr supernode took over 120 s")
        return {"success": False, "error-message": "not a key"}

    with pytest.raises(PenstockError, match="not a key|over 120 s"):
        registering(mine, half)
    database = database_of(mine)
    (tmp_path / "keys" / "a.pub").unlink()  # was let in, and nothing says so
    mine._mend_database()
    assert not database.exists() and "not known which keys" in notes[0]
    assert registering(mine, yes) == ["b"]


def test_keys_that_came_without_being_checked_are_not_let_in_later(tmp_path: Path) -> None:
    mine = secured(tmp_path)
    (tmp_path / "keys" / "a.pub").write_text("key a")
    registering(mine, yes)
    database = database_of(mine)
    link(tmp_path, PLAIN)._mend_database()  # a start with `insecure = true`
    assert database.exists()
    mine._mend_database()
    assert not database.exists()


def test_a_log_that_grew_is_emptied_while_superlink_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink_module, "MOST_LOG_BYTES", 1000)
    mine = link(tmp_path, PLAIN)
    log = mine.folder / "superlink.log"
    with mine._open_log() as file:
        file.write(b"x" * 900)
        file.flush()
        mine.trim_log()
        assert log.stat().st_size == 900
        file.write(b"y" * 200)
        file.flush()
        mine.trim_log()
        assert log.stat().st_size == 0
        file.write(b"more")
    assert log.read_bytes() == b"more"
    assert log.with_suffix(".log.1").read_bytes() == b"x" * 900 + b"y" * 200
    log.unlink()
    mine.trim_log()  # nothing to do


def test_a_log_that_cannot_be_kept_is_emptied_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink_module, "MOST_LOG_BYTES", 10)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    mine = link(tmp_path, PLAIN)
    (mine.folder / "superlink.log").write_bytes(b"x" * 100)
    mine.trim_log()
    assert (mine.folder / "superlink.log").stat().st_size == 0


def test_a_damaged_database_is_moved_aside_with_what_it_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    mine = secured(tmp_path, notes)
    database = mine.folder / "superlink.db"
    with closing(sqlite3.connect(database)) as made:
        made.execute("CREATE TABLE node (id INTEGER)")
        made.executemany("INSERT INTO node VALUES (?)", [(i,) for i in range(5000)])
        made.commit()
    (mine.folder / "registered.json").write_text("{}")
    mine._mend_database()
    assert database.exists() and (mine.folder / "registered.json").exists() and notes == []
    data = bytearray(database.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    database.write_bytes(data)
    mine._mend_database()
    assert not database.exists() and not (mine.folder / "registered.json").exists()
    [aside] = mine.folder.glob("superlink.db.corrupt-*")
    assert aside.read_bytes() == bytes(data) and aside.name in notes[0]
    for again in range(2, 5):
        database.write_bytes(b"no database at all" * again)
        (mine.folder / "registered.json").write_text("{}")
        monkeypatch.setattr(time, "time", lambda at=again: 4e9 + at)
        mine._mend_database()
        assert not database.exists() and len(notes) == again
    kept = sorted(path.stat().st_size for path in mine.folder.glob("superlink.db.corrupt-*"))
    assert kept == [18 * 3, 18 * 4]  # the newest two


def test_without_a_database_every_key_is_registered_anew(tmp_path: Path) -> None:
    mine = link(tmp_path, replace(PLAIN, database=False))
    (mine.folder / "registered.json").write_text('{"a": "1"}')
    mine._mend_database()
    assert not (mine.folder / "registered.json").exists()


def test_another_server_at_the_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            mine = link(tmp_path, replace(PLAIN, port=other.server_address[1]))
            with pytest.raises(UsageError, match="another server answers at 127.0.0.1"):
                mine.start()
            assert not mine.alive()
        finally:
            other.shutdown()
            thread.join()


def test_one_that_does_not_come_up_is_an_error_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink_module, "PROCESS", "penstock.no_such_module")
    with pytest.raises(PenstockError, match="did not come up; its log ends: .*no_such_module"):
        link(tmp_path, replace(PLAIN, port=9)).start()


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1:8000"), ("::", "[::1]:8000"), ("10.0.0.5", "10.0.0.5:8000")],
)
def test_the_address_on_this_machine(host: str, address: str, tmp_path: Path) -> None:
    assert link(tmp_path, replace(PLAIN, host=host)).address == address


def test_the_app_names_the_settings_whatever_their_path(tmp_path: Path) -> None:
    tomllib = pytest.importorskip("tomllib")
    odd = tmp_path / 'a "quoted" näme\\.toml'
    write_app(tmp_path / "app", odd, tmp_path / "rün", resume=True, attempt="ab12")
    found = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text("utf-8"))
    assert found["tool"]["flwr"]["app"]["config"] == {
        "settings-file": str(odd),
        "folder": str(tmp_path / "rün"),
        "resume": True,
        "attempt": "ab12",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_is_ended_with_what_it_started_in_other_sessions() -> None:
    code = (
        "import subprocess, time\n"
        "subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    [child] = descendants(process.pid)
    started = time.monotonic()
    stop(process)
    process.stdout.close()
    assert time.monotonic() - started < 9
    status = Path(f"/proc/{child}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
