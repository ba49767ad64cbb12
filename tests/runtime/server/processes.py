"""Server processes and clients for tests: real sockets, on this machine only."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

HOST = "127.0.0.1"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SECONDS_MOST = 60.0  # before a test gives up; the machine may be busy


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error, which must be of OpenAI's shape."""
        assert set(self.json) == {"error"}, self.json
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return self.json["error"]


class Client:
    """Asks one server; each request has a connection of its own."""

    def __init__(self, port: int, key: str | None = None) -> None:
        self.port = port
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, None, headers)

    def post(self, path: str, document: object, **headers: str) -> Reply:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.request("POST", path, body, {"Content-Type": "application/json", **headers})

    def request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Reply:
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=60)) as link:
            link.request(method, path, body, {**self.headers, **headers})
            answer = link.getresponse()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())

    @contextlib.contextmanager
    def open_stream(self, path: str, document: Mapping[str, Any]) -> Iterator[Iterator[Any]]:
        """The events of a stream as they come; leaving the block closes the connection."""
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=60)) as link:
            body = json.dumps({**document, "stream": True})
            link.request("POST", path, body, {"Content-Type": "application/json", **self.headers})
            answer = link.getresponse()
            with contextlib.closing(answer):
                assert answer.status == 200, answer.read()
                assert answer.headers["content-type"].startswith("text/event-stream")
                yield _events(answer)

    def stream(self, path: str, document: Mapping[str, Any]) -> list[Any]:
        """All events of a stream, less the [DONE] with which it must end."""
        with self.open_stream(path, document) as events:
            received = list(events)
        assert received[-1] == "[DONE]"
        return received[:-1]

    def metrics(self) -> dict[str, float]:
        """Names, with labels, and values."""
        text = self.get("/metrics").body.decode()
        return {
            name: float(value)
            for name, value in re.findall(r"^penstock_(\S+) (\S+)$", text, re.MULTILINE)
        }

    def wait_for(self, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """The metrics, once they are so."""
        end = time.monotonic() + SECONDS_MOST
        while True:
            numbers = self.metrics()
            if condition(numbers):
                return numbers
            assert time.monotonic() < end, numbers
            time.sleep(0.01)


def _events(lines: Iterator[bytes]) -> Iterator[Any]:
    for line in lines:
        if line == b"\n":
            continue
        assert line.startswith(b"data: ") and line.endswith(b"\n"), line
        data = line[6:-1].decode()
        yield data if data == "[DONE]" else json.loads(data)


def text_of(events: Sequence[Any]) -> str:
    """The text of a stream's events."""
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(c["delta"].get("content", "") if "delta" in c else c["text"] for c in choices)


class ServerProcess:
    """A process whose first line on stdout holds the URL at which it serves."""

    def __init__(self, command: Sequence[str], key: str | None = None, **env: str) -> None:
        self._err = tempfile.TemporaryFile()
        environment = {name: v for name, v in os.environ.items() if name != "PENSTOCK_API_KEY"}
        self._child = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE, stderr=self._err, env={**environment, **env},
        )  # fmt: skip
        assert self._child.stdout is not None
        self._out = self._child.stdout
        ready, _, _ = select.select([self._out], [], [], SECONDS_MOST)
        self.first_line = self._out.readline().decode() if ready else ""
        found = re.search(r"http://\S+:(\d+)", self.first_line)
        if found is None:
            self.stop(signal.SIGKILL)
            errors = self.errors
            self._err.close()
            raise AssertionError(f"no server: {self.first_line!r} {errors}")
        self.client = Client(int(found[1]), key)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        code = self.stop()
        errors = self.errors
        self._err.close()
        if kind is None:
            assert code == 0, errors
            assert "Traceback" not in errors, errors

    @property
    def errors(self) -> str:
        """What it has written to stderr."""
        self._err.seek(0)
        return self._err.read().decode()

    @property
    def resident_bytes(self) -> int:
        """Memory that it has now; Linux only."""
        status = Path(f"/proc/{self._child.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10

    def send_signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def wait(self) -> int:
        return self._child.wait(timeout=SECONDS_MOST)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it, if it has not ended; the exit code."""
        try:
            if self._child.poll() is None:
                self.send_signal(number)
            return self.wait()
        finally:
            self._child.kill()
            self._child.wait()
            self._out.close()


def scripted_server(**options: Any) -> ServerProcess:
    """A server of ScriptedModel on a free port."""
    script = Path(__file__).with_name("scripted_model.py")
    key = options.get("api_key")
    return ServerProcess([str(script), json.dumps({"port": 0, **options})], key)


def model_server(model: Path, *options: str, **env: str) -> ServerProcess:
    """`penstock serve` on a free port."""
    command = ["-m", "penstock.cli.main", "serve", str(model), "--port", "0", *options]
    return ServerProcess(command, env.get("PENSTOCK_API_KEY"), **env)


def raw_exchange(port: int, data: bytes) -> bytes:
    """Send bytes as they are; everything that comes back until the server closes."""
    with socket.create_connection((HOST, port), timeout=60) as link:
        link.sendall(data)
        parts = []
        while part := link.recv(65536):
            parts.append(part)
        return b"".join(parts)
