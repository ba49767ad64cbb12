"""A model in a browser on this machine: one page, one binary, no file from elsewhere.

with ViewServer(model, "flame.psplat") as server:
    print(server.url)
    server.wait()  # until Ctrl-C
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import queue
import re
import signal
import threading
from collections.abc import Callable, Sequence
from importlib.resources import files
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from penstock.errors import PenstockError
from penstock.loaders.splats.model import SplatModel
from penstock.runtime.splats.camera import extent
from penstock.runtime.splats.page_model import page_model

HOST = "127.0.0.1"
REQUEST_SECONDS = 20.0  # for a client that connects and says nothing, or takes nothing
POLL_SECONDS = 0.2  # within which a stop is noticed
PART = re.compile(r"\{\{([a-z]+\.[a-z]+)\}\}")  # where the page takes in another file


def assemble_page() -> str:
    """The page's parts (data/) in one HTML document."""
    folder = files("penstock.runtime.splats").joinpath("data")

    def read(name: str) -> str:
        text = folder.joinpath(name).read_text(encoding="utf-8")
        return PART.sub(lambda match: read(match[1]), text)

    return read("view.html")


def content_policy(page: str) -> str:
    """The Content-Security-Policy under which this page runs, and nothing that gets into it.

    Its own script and style by their hashes, the worker that it makes of its own text, and what
    this server gives; browsers ask for a picture, the page's icon.
    """

    def allowed(tag: str) -> str:
        texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; "
        "connect-src 'self'; img-src 'self'; worker-src blob:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


def first_view(model: SplatModel) -> dict[str, Any]:
    """Where to look at first: the `center` of the splats and the `radius` that holds most."""
    center, radius = extent(model)
    return {"center": center.tolist(), "radius": radius}


class ViewServer:
    """Serves the page and the model on 127.0.0.1 from a thread of its own, until closed.

    Args:
        name: of the model, to people.
        port: 0 takes a free one.
        background: red, green and blue in 0..1.
        footprint: "exact" or "omg4-sentinel", as SplatRenderer has it.

    Raises:
        PenstockError: the port is in use.
    """

    def __init__(
        self,
        model: SplatModel,
        name: str,
        *,
        port: int = 0,
        background: Sequence[float] = (0.0, 0.0, 0.0),
        footprint: str = "exact",
    ) -> None:
        page = assemble_page()
        facts = {"name": name, "background": list(background), "footprint": footprint}
        facts |= first_view(model)
        bodies = {
            "/": ("text/html; charset=utf-8", page.encode()),
            "/model": ("application/octet-stream", page_model(model, facts)),
        }

        class Handler(_Handler):
            content = bodies
            policy = content_policy(page)

        try:
            self._server = _Server((HOST, port), Handler)
        except OSError as error:
            raise PenstockError(
                f"cannot listen at {HOST}:{port}: {error.strerror}; choose another --port "
                "(0 takes a free one)"
            ) from None
        self.count = model.count
        self.port = int(self._server.server_address[1])
        self.url = f"http://{HOST}:{self.port}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": POLL_SECONDS}, daemon=True
        )
        self._thread.start()

    def wait(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Return at SIGINT or SIGTERM. In the main thread only.

        Args:
            on_ready: called when a signal from now on is noticed.
        """
        # A signal may come while this waits: an event's lock would then be taken twice, for ever.
        stop: queue.SimpleQueue[None] = queue.SimpleQueue()
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda *_: stop.put(None)) for number in numbers}
        try:
            on_ready()
            stop.get()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> ViewServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True  # a browser's idle connection does not hold up the end
    allow_reuse_port = False  # or two servers would share a port, and one of them be asked


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Penstock", ""
    content: dict[str, tuple[str, bytes]]
    policy: str

    def handle(self) -> None:
        """One connection; a browser may leave in the middle of an answer."""
        with contextlib.suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        self._answer(self.wfile.write)

    def do_HEAD(self) -> None:
        self._answer(lambda body: None)

    def _answer(self, write: Callable[[bytes], object]) -> None:
        path = urlsplit(self.path).path
        if not self._is_local():
            self._send(403, "text/plain", b"this page is for this machine only\n", write)
        elif path in self.content:
            self._send(200, *self.content[path], write)
        elif path == "/favicon.ico":
            self._send(204, "image/x-icon", b"", write)
        else:
            self._send(404, "text/plain", b"there are / and /model\n", write)

    def _is_local(self) -> bool:
        """Whether the page was asked for by this machine's name: a foreign name that somebody let
        point to 127.0.0.1 would let their page read the model."""
        port = self.connection.getsockname()[1]
        return self.headers.get("Host", "") in {f"{HOST}:{port}", f"localhost:{port}"}

    def _send(self, code: int, kind: str, body: bytes, write: Callable[[bytes], object]) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if code != 204:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", self.policy)
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stdout and stderr are the command's."""
