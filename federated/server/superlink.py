"""Flower's SuperLink as a child process, and what one asks it through the `flwr` command.

Everything of Flower lies in one private folder: configuration, database, log, the app. Nothing of
the user's own ~/.flwr is read or written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError, StorageError, UsageError
from penstock.federated.flower_content import no_calls_home
from penstock.federated.server import processes
from penstock.federated.server.app_folder import write_app
from penstock.federated.server.certificates import AUTHORITY, CERTIFICATE, KEY
from penstock.federated.server.settings import SuperLinkSettings
from penstock.loaders.partial_file import partial_file

START_S, COMMAND_S = 90.0, 120.0
MOST_LOG_BYTES = 16 << 20
KEPT = 2  # damaged databases
DATABASE, REGISTERED, LOG = "superlink.db", "registered.json", "superlink.log"
COMMANDS = "penstock.federated.server.flower_commands"
PROCESS = "penstock.federated.server.superlink_process"


class SuperLink:
    """One SuperLink.

    Args:
        folder: Flower's private one; made when it is not there.
        note: told in words about everything out of the ordinary.
    """

    def __init__(
        self, settings: SuperLinkSettings, folder: Path, note: Callable[[str], None]
    ) -> None:
        self.settings, self.folder, self.note = settings, folder, note
        self.certificate, self.key, self.authority = _tls(settings, folder.parent)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.settings.host, self.settings.host)
        return f"{host}:{self.settings.port}"

    # ---------------------------------------------------------------- the process

    def start(self) -> None:
        """Start it and wait until it answers; register devices' keys.

        Raises:
            UsageError: no device may take part, or another server answers at the address.
            StorageError: the folder cannot be written.
            PenstockError: it did not come up; with the end of its log.
        """
        if not self.settings.insecure and not self._wanted_keys():
            raise UsageError(self._nobody())
        if self._answers():
            raise UsageError(
                f"another server answers at {self.address}; end it, or set superlink.port"
            )
        self.note("starting SuperLink…")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._mend_database()
            (self.folder / "config.toml").write_text(self._connection(), "utf-8")
            log = self._open_log()
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be written: {error.strerror}") from error
        secure = (
            ["--insecure"]
            if self.settings.insecure
            else [
                f"--ssl-ca-certfile={self.authority}",
                f"--ssl-certfile={self.certificate}",
                f"--ssl-keyfile={self.key}",
                "--enable-supernode-auth",
            ]
        )
        with log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    PROCESS,
                    f"--host={self.settings.host}",
                    f"--port={self.settings.port}",
                    *([f"--database={self.folder / DATABASE}"] if self.settings.database else []),
                    *secure,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is for us, who then stop it
            )
        until = time.monotonic() + START_S
        while not self._answers():
            if not self.alive() or time.monotonic() > until:
                self.stop()
                raise PenstockError(f"SuperLink did not come up; its log ends: {self.log_tail()}")
            time.sleep(0.1)
        if not self.settings.insecure:
            self._register_keys()

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End it and everything it started."""
        if self.process is not None:
            processes.stop(self.process)

    def trim_log(self) -> None:
        """Empty a log that has grown too long; what it held is in `superlink.log.1`.

        SuperLink appends, so that it goes on at the beginning. On a full disk there is no copy.
        """
        path = self.folder / LOG
        with suppress(OSError):
            if path.stat().st_size > MOST_LOG_BYTES:
                with suppress(OSError):
                    shutil.copyfile(path, path.with_suffix(".log.1"))
                os.truncate(path, 0)

    def log_tail(self, size: int = 1500) -> str:
        """The end of the log, of SuperLink and of the runs."""
        with suppress(OSError):
            return (self.folder / LOG).read_bytes()[-size:].decode("utf-8", "replace")
        return "(no log)"

    # ---------------------------------------------------------------- runs

    def submit(self, settings_file: Path, *, resume: bool, attempt: str) -> str:
        """Start a run; its Flower identity.

        Raises:
            PenstockError: SuperLink did not take it.
        """
        app = self.folder / "app"
        run_folder = self.folder.parent.resolve()
        write_app(app, settings_file, run_folder, resume=resume, attempt=attempt)
        answer = self._command("run", str(app), "penstock")
        run = answer.get("run-id")
        if not isinstance(run, str):
            raise PenstockError(f"flwr run gave no run: {answer}")
        return run

    def status(self, run: str) -> str:
        """Flower's word for a run: pending, starting, running, finished:completed,
        finished:failed, finished:stopped; empty: it could not be had."""
        try:
            runs = self._command("list", "penstock", "--run-id", run).get("runs", [])
        except PenstockError as error:
            self.note(f"the state of run {run} could not be had: {error}")
            return ""
        return str(runs[0].get("status", "")) if runs else ""

    # ---------------------------------------------------------------- devices' keys

    def _register_keys(self) -> None:
        """Let the devices of the folder `node_keys` in.

        Raises:
            UsageError: a file holds no key.
            StorageError: a file cannot be read or written.
            PenstockError: SuperLink does not answer.
        """
        known_file = self.folder / REGISTERED
        wanted, known = self._wanted_keys(), self._known_keys() or {}
        new = [path for name, path in wanted.items() if name not in known]
        if new:
            known_file.unlink(missing_ok=True)  # until all are in: see `_drop_keys`
        answers = self._commands(
            [["supernode", "register", str(path), "penstock", "--name", path.stem] for path in new]
        )
        for path, answer in zip(new, answers, strict=True):
            told = str(answer.get("error-message", ""))
            if answer.get("success") is not True and "already in use" not in told:
                raise UsageError(f"{path}: the key cannot be registered: {told}")
        with partial_file(known_file) as (file, _):
            # With those of before: one whose file went away since this start began is still let in.
            let_in = known | {name: path.name for name, path in wanted.items()}
            file.write(json.dumps(let_in).encode())

    def _drop_keys(self) -> None:
        """Remove the database when it may let in a key that is not wanted any more.

        `flwr supernode unregister` would not do: a key that SuperLink has seen once is never let in
        again, so that one that comes back to the folder would stay out.
        """
        known = self._known_keys()
        if known is None:
            self.note("it is not known which keys SuperLink's database lets in; a new one begins")
        else:
            gone = sorted(known[name] for name in set(known) - set(self._wanted_keys()))
            if not gone:
                return
            self.note(f"keys were taken away: {', '.join(gone)}; a new SuperLink's database begins")
        self._remove(DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", REGISTERED)

    def _wanted_keys(self) -> dict[str, Path]:
        """Devices' keys of the folder `node_keys`, by digest.

        Raises:
            StorageError: one cannot be read.
        """
        paths = Path(self.settings.node_keys).glob("*.pub") if self.settings.node_keys else ()
        wanted: dict[str, Path] = {}
        for path in sorted(paths):
            try:
                wanted[hashlib.sha256(path.read_bytes().strip()).hexdigest()] = path
            except OSError as error:
                raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
        return wanted

    def _nobody(self) -> str:
        folder = self.settings.node_keys
        if not folder:
            lack = "superlink.node_keys is not set to a folder"
        elif not Path(folder).is_dir():
            lack = f"superlink.node_keys: {folder} is not there"
        else:
            lack = f"superlink.node_keys: {folder} holds no *.pub"
        return (
            f"{lack}, so that no device may take part: put each device's public key into that "
            "folder as NAME.pub; `penstock federated client --key` on the device prints it"
        )

    def _known_keys(self) -> dict[str, str] | None:
        """Digest and file of each key that SuperLink's database lets in; None: nobody knows."""
        with suppress(OSError, ValueError):
            known = json.loads((self.folder / REGISTERED).read_bytes())
            if isinstance(known, dict):
                return {name: str(file) for name, file in known.items()}
        return None

    # ---------------------------------------------------------------- Flower's files

    def _mend_database(self) -> None:
        """Put a damaged database aside: keys are registered anew, and the run resumes from its own
        checkpoint, so that nothing in it is needed."""
        path = self.folder / DATABASE
        if self.settings.insecure or not self.settings.database or not path.exists():
            # SuperLink knows no keys yet, or lets in whoever comes.
            (self.folder / REGISTERED).unlink(missing_ok=True)
        else:
            self._drop_keys()
        if not self.settings.database or not path.exists():
            return
        try:
            with closing(sqlite3.connect(path)) as database:
                found = database.execute("PRAGMA quick_check").fetchone()[0]
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            found = str(error)
        if found == "ok":
            return
        aside = path.with_name(f"{DATABASE}.corrupt-{int(time.time())}")
        self.note(f"{path} is damaged ({found}); it was moved to {aside.name}, a new one begins")
        path.rename(aside)
        self._remove(f"{DATABASE}-wal", f"{DATABASE}-shm", REGISTERED)
        self._remove(*sorted(p.name for p in self.folder.glob(f"{DATABASE}.corrupt-*"))[:-KEPT])

    def _remove(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _connection(self) -> str:
        trust = (
            "insecure = true"
            if self.settings.insecure
            else f"root-certificates = {json.dumps(str(self.authority))}"
        )
        return (
            '[superlink]\ndefault = "penstock"\n\n[superlink.penstock]\n'
            f"address = {json.dumps(self.address)}\n{trust}\n"
        )

    def _open_log(self) -> Any:
        self.trim_log()
        return open(self.folder / LOG, "ab")

    def _environment(self) -> dict[str, str]:
        no_calls_home()  # also what stops SuperLink from installing packages for a run
        here = str(Path(sys.executable).parent)  # SuperLink starts flower-superexec by its name
        path = os.pathsep.join([here, os.environ.get("PATH", os.defpath)])
        return os.environ | {"FLWR_HOME": str(self.folder), "PATH": path, "NO_COLOR": "1"}

    def _command(self, *words: str) -> dict[str, Any]:
        """A `flwr` command's answer.

        Raises:
            PenstockError: it failed, or its answer is none.
        """
        [answer] = self._commands([words])
        if answer.get("success") is not True:
            raise PenstockError(f"flwr {' '.join(words[:2])}: {answer.get('error-message')}")
        return answer

    def _commands(self, commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """The answers of `flwr` commands, run one after the other in one process.

        Raises:
            PenstockError: there are none.
        """
        if not commands:
            return []
        try:
            done = subprocess.run(
                [sys.executable, "-m", COMMANDS, json.dumps([list(words) for words in commands])],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=self._environment(),
                timeout=COMMAND_S + len(commands),
            )
        except subprocess.TimeoutExpired as error:
            raise PenstockError(f"flwr {commands[0][0]} took over {error.timeout:g} s") from error
        try:
            answers = [json.loads(line) for line in done.stdout.splitlines()]
        except ValueError:
            answers = []
        if len(answers) != len(commands):
            said = (done.stdout + done.stderr).strip()[-1000:]
            raise PenstockError(f"flwr {commands[0][0]} ended with {done.returncode}: {said}")
        return answers

    def _answers(self) -> bool:
        scheme, context = "http", None
        if not self.settings.insecure:
            scheme, context = "https", ssl.create_default_context(cafile=str(self.authority))
        try:
            url = f"{scheme}://{self.address}/health"
            with urllib.request.urlopen(url, timeout=2, context=context) as answer:
                return bool(answer.status == 200)
        except ssl.SSLCertVerificationError:
            return True  # somebody answers, with another certificate
        except urllib.error.URLError as error:
            return isinstance(error.reason, ssl.SSLError)
        except (OSError, ValueError):
            return False


def _tls(settings: SuperLinkSettings, folder: Path) -> tuple[Path, Path, Path]:
    """Certificate, key and authority.

    Raises:
        UsageError: one is not there.
    """
    own = folder / "certificates"
    certificate = Path(settings.certificate or own / CERTIFICATE)
    key, authority = Path(settings.key or own / KEY), Path(settings.authority or own / AUTHORITY)
    if not settings.insecure:
        for path in (certificate, key, authority):
            if not path.is_file():
                raise UsageError(
                    f"{path} is not there: name certificate, key and authority under [superlink], "
                    "or have them made by --make-certificates"
                )
    return certificate, key, authority
