"""SuperLink's files and processes: what is checked before it starts, and what is left after it."""

from __future__ import annotations

import http.server
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

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


def test_a_damaged_database_is_moved_aside_with_what_it_knew(tmp_path: Path) -> None:
    notes: list[str] = []
    mine = link(tmp_path, PLAIN, notes)
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
    database.write_bytes(b"no database at all" * 100)
    mine._mend_database()
    assert not database.exists() and len(notes) == 2


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
    write_app(tmp_path / "app", odd, resume=True, attempt="ab12")
    found = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text("utf-8"))
    assert found["tool"]["flwr"]["app"]["config"] == {
        "settings-file": str(odd),
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
