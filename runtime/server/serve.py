"""From a loaded model to a listening server, and back at a signal.

sock = bind(options)                       # early: a port in use is found before a model is loaded
serve(model, "storyteller", sock, options)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from penstock.errors import BackendMissingError, PenstockError, UsageError
from penstock.runtime.language_model import LanguageModel
from penstock.runtime.server.access import Access, check_key, resolve
from penstock.runtime.server.app import Gate, Service, make_app
from penstock.runtime.server.metrics import Metrics
from penstock.runtime.server.worker import Worker

if TYPE_CHECKING:
    import uvicorn

WORKER_SECONDS = 5  # at the end, for the token in hand
KEEP_ALIVE_SECONDS = 65


@dataclass(frozen=True)
class ServerOptions:
    """Where to listen and what to take.

    Attributes:
        port: 0 takes a free one.
        api_key: what clients must send; needed where other machines can reach the host.
        max_body_bytes: of a request.
        max_queue: requests that may wait.
        grace_seconds: after a signal, for the answer that is being made; and as long again for
            clients to take what they were sent.
        head_seconds: for a request's first line and headers; its body has a time of its own.
        spare_connections: beside those of requests that wait: idle ones, /health, bodies that are
            being read.

    Raises:
        UsageError: a value is out of its range.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    max_body_bytes: int = 1 << 20
    max_queue: int = 128
    grace_seconds: float = 5.0
    head_seconds: float = 20.0
    spare_connections: int = 256

    def __post_init__(self) -> None:
        check_key(self.api_key)
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port is {self.port}; expected 0 to 65535")
        for name in ("max_body_bytes", "max_queue", "spare_connections"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 1 or more")


def bind(options: ServerOptions) -> socket.socket:
    """Take the port. Nothing is accepted before `serve`.

    Raises:
        BackendMissingError: Starlette or uvicorn is not installed.
        UsageError: other machines can reach the host, and there is no key.
        PenstockError: there is no such host, or the port is in use.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise BackendMissingError(
            f"the server needs {error.name}; install it with: pip install 'penstock[serve]'"
        ) from None
    family, address, is_local = resolve(options.host, options.port)
    if not is_local and options.api_key is None:
        raise UsageError(
            f"--host {options.host} can be reached from other machines; give an --api-key (or set "
            "PENSTOCK_API_KEY), or stay with 127.0.0.1"
        )
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _cannot_listen(address, error) from None
    return sock


def url(sock: socket.socket) -> str:
    """Where a bound socket will be reached."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    model: LanguageModel,
    name: str,
    sock: socket.socket,
    options: ServerOptions,
    on_ready: Callable[[], None] = lambda: None,
) -> bool:
    """Answer requests until SIGINT or SIGTERM.

    Then the answer that is being made has `grace_seconds` to finish, and those that wait are sent
    away. A second signal ends it at once.

    Args:
        name: the model's, to clients.
        sock: from `bind`; closed at the end.
        on_ready: called when connections are accepted.

    Returns:
        Whether the model is at rest. If not, it is in the middle of a batch, and a thread computes
        on its memory: it must not be closed, nor the process end in the usual way (os._exit does).

    Raises:
        PenstockError: another process took the port meanwhile.
    """
    metrics = Metrics()
    max_bytes = options.max_queue * options.max_body_bytes
    worker = Worker(model, metrics, options.max_queue, max_bytes)
    access = Access(options.api_key, options.host)
    service = Service(name, model.context_tokens, worker, metrics, access, options.max_body_bytes)
    try:
        _server(make_app(service), worker, on_ready, options).run(sockets=[sock])
    finally:
        sock.close()
        at_rest = worker.close(WORKER_SECONDS)
    return at_rest


def _server(
    app: Gate, worker: Worker, on_ready: Callable[[], None], options: ServerOptions
) -> uvicorn.Server:
    import uvicorn

    from penstock.runtime.server.connection import connections

    grace_seconds = options.grace_seconds

    class Server(uvicorn.Server):
        """Uvicorn's, with its own idea of starting and stopping."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            try:
                await super().startup(sockets)
            except OSError as error:
                for sock in sockets or []:
                    raise _cannot_listen(sock.getsockname()[:2], error) from None
                raise
            on_ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            worker.refuse()
            call_later = asyncio.get_running_loop().call_later
            late = call_later(grace_seconds, worker.abort)
            later = call_later(2 * grace_seconds, self._hang_up)
            await super().shutdown(sockets)
            late.cancel()
            later.cancel()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:  # the second one
                worker.abort()
                self._hang_up()
            self.should_exit = True

        def _hang_up(self) -> None:
            for connection in list(self.server_state.connections):
                connection.transport.abort()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Uvicorn's raises the signals again at the end; to us they mean success."""
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            numbers = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=connections(options.max_queue + options.spare_connections, options.head_seconds),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(2 * grace_seconds) + 5,  # not reached, by the above
    )
    return Server(config)


def _cannot_listen(address: tuple[str, int], error: OSError) -> PenstockError:
    if error.errno == errno.EADDRNOTAVAIL:
        advice = "give --host an address of this machine"
    else:
        advice = "stop what listens there, or choose another --port (0 takes a free one)"
    return PenstockError(f"cannot listen at {address[0]}:{address[1]}: {error.strerror}; {advice}")
