"""`python -m penstock.federated.server.superlink_process`: flower-superlink with five mends.

- Flower 1.41 serves three interfaces at one port: Fleet for devices, guarded by node keys; Runtime,
  guarded by a token; and Control, by which anybody who reaches the port may submit a run, code
  included. Here Control and Runtime answer this machine only.
- It takes requests of any size into memory, from anybody; here a device's are at most a message's
  part each, and a message has no more parts than the largest model that is taken.
- It waits for devices' idle connections when it is to end; here for three seconds.
- It logs a line for every request, five a second from each waiting device; here it does not.
- It ends when the process that started it is gone, however that died.

The two Flower names that are replaced are named here and nowhere else; another version of Flower,
where they may be gone, is refused.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import islice
from typing import Any

from penstock.errors import BackendMissingError
from penstock.federated.flower_content import no_calls_home
from penstock.federated.server.pulling import MOST_PARTS, PART_BYTES

FLOWER = "1.41.0"
STOP_S = 3  # for requests that are being answered; devices' connections stay open for ever
FLEET = "/v1/fleet/"
OPEN_PATHS = (FLEET, "/health")  # what other machines may ask for
PUSH_MESSAGES = f"{FLEET}push-messages"
MOST_BODY = PART_BYTES + (1 << 20)
Scope = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]


class LocalControl:
    """ASGI middleware: what is not for devices is answered to this machine only."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(
        self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Awaitable[None]]
    ) -> None:
        if scope["type"] in ("http", "websocket") and not allowed(scope):
            if scope["type"] == "http":
                await _refuse(send, 403, "only devices' requests are answered to other machines")
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        await self.app(scope, receive, send)


class BoundedRequests:
    """ASGI middleware: devices' requests are of bounded size, and so are the messages that they
    announce. Flower takes one reply to each message, and only the parts that were announced."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(
        self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Awaitable[None]]
    ) -> None:
        path = str(scope.get("path", ""))
        if scope["type"] != "http" or not path.startswith(FLEET):
            await self.app(scope, receive, send)
            return
        size = body_size(scope)
        if size is None:
            await _refuse(send, 411, "a request has to say how long it is")
            return
        if size > MOST_BODY:
            await _refuse(send, 413, f"{size:,} bytes, at most {MOST_BODY:,} are taken")
            return
        if path == PUSH_MESSAGES:
            body = await _body(receive)
            if body is None:
                return
            if more_parts(body, MOST_PARTS):
                await _refuse(send, 413, f"a message of over {MOST_PARTS} parts is not taken")
                return
            receive = _again(body, receive)
        await self.app(scope, receive, send)


def body_size(scope: Scope) -> int | None:
    """Bytes of a request's body, as it declares them; None: it may be of any length."""
    headers = dict(scope.get("headers", ()))
    length = bytes(headers.get(b"content-length", b""))
    if b"transfer-encoding" in headers or not length.isdigit():
        return None
    return int(length)


def more_parts(body: bytes, most: int) -> bool:
    """Whether the messages that a PushMessages request announces have more parts in all."""
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        trees = PushMessagesRequest.FromString(body).message_object_trees
    except DecodeError:
        return False  # Flower refuses it
    parts = (part for tree in trees for part in iterate_object_tree(tree))
    return next(islice(parts, most, None), None) is not None


async def _body(receive: Callable[..., Any]) -> bytes | None:
    """A request's body, of which the server lets no more through than was declared; None: the
    connection broke."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Callable[..., Any]) -> Callable[..., Any]:
    """A `receive` that gives the body that was read, and then what comes after it."""
    whole = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Any:
        return next(whole, None) or await receive()

    return again


async def _refuse(send: Callable[..., Awaitable[None]], status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})


def allowed(scope: Scope) -> bool:
    """Whether this request may be answered: it is for devices, or from this machine."""
    path = str(scope.get("path", ""))
    if any(path == name or (name.endswith("/") and path.startswith(name)) for name in OPEN_PATHS):
        return True
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    host = str(client[0]).removeprefix("::ffff:")
    # Flower's own processes come by the address that the server listens at.
    return host.startswith("127.") or host == "::1" or bool(server and server[0] == client[0])


def main() -> None:
    """Run until SIGTERM, or until the parent is gone."""
    no_calls_home()
    watch_parent()
    try:
        import flwr
        import uvicorn
        from flwr.superlink import extensions
        from flwr.superlink.cli import flower_superlink
        from starlette.middleware import Middleware
    except ImportError as error:
        raise BackendMissingError(
            f"the server needs Flower: pip install 'penstock[federated]' ({error})"
        ) from error
    if flwr.__version__ != FLOWER:
        raise BackendMissingError(
            f"Flower {flwr.__version__} is installed, this server is made for {FLOWER}: pip "
            "install 'penstock[federated]'"
        )
    others, serve = extensions.get_middleware, uvicorn.run

    def with_ours() -> tuple[Middleware, ...]:
        return (Middleware(LocalControl), Middleware(BoundedRequests), *others())

    def quietly(*args: Any, **options: Any) -> None:
        ours = {"access_log": False, "timeout_graceful_shutdown": STOP_S}
        serve(*args, **(options | ours))

    extensions.get_middleware = with_ours
    uvicorn.run = quietly
    sys.argv[0] = "flower-superlink"
    flower_superlink()


def watch_parent() -> None:
    """End this process when its parent ends: a SIGKILL of the parent reaches nobody else."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


if __name__ == "__main__":
    main()
