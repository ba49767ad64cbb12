"""The local health endpoint: GET /health says 200 or 503 and why, GET /status all as JSON."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any

from penstock.errors import UsageError

HOST = "127.0.0.1"
SAID = ("reason", "standing", "standing_reason", "standing_since")
REQUEST_S = 5.0  # for a client that connects and says nothing


class HealthServer:
    """Answers on 127.0.0.1 only, from a thread of its own.

    Args:
        port: 0: any free one.
        facts: gives what to say; "healthy" is among it.

    Raises:
        UsageError: the port is taken.
    """

    def __init__(self, port: int, facts: Callable[[], dict[str, Any]]) -> None:
        class Handler(_Handler):
            say = staticmethod(facts)

        try:
            self._server = http.server.ThreadingHTTPServer((HOST, port), Handler)
        except OSError as error:
            raise UsageError(f"[daemon] health_port {port}: {error.strerror}") from error
        self._server.daemon_threads = True
        self.address = f"http://{HOST}:{self._server.server_address[1]}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 2.0}, daemon=True
        ).start()

    def close(self) -> None:
        """Free the port."""
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = REQUEST_S
    say: Callable[[], dict[str, Any]]

    def do_GET(self) -> None:
        facts = self.say()
        if self.path == "/health":
            well = bool(facts.get("healthy"))
            said = {name: facts[name] for name in SAID if facts.get(name)}
            self._send(200 if well else 503, {"healthy": well, "phase": facts.get("phase")} | said)
        elif self.path == "/status":
            self._send(200, facts)
        else:
            self._send(404, {"error": "there are /health and /status"})

    def _send(self, code: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: probes come every few seconds."""
