"""`python -m penstock.federated.server.superlink_process`: flower-superlink with four mends.

- Flower 1.41 serves three interfaces at one port: Fleet for devices, guarded by node keys; Runtime,
  guarded by a token; and Control, by which anybody who reaches the port may submit a run, code
  included. Here Control and Runtime answer this machine only.
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
from typing import Any

from penstock.errors import BackendMissingError
from penstock.federated.flower_content import no_calls_home

FLOWER = "1.41.0"
STOP_S = 3  # for requests that are being answered; devices' connections stay open for ever
OPEN_PATHS = ("/v1/fleet/", "/health")  # what other machines may ask for
Scope = MutableMapping[str, Any]


class LocalControl:
    """ASGI middleware: what is not for devices is answered to this machine only."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(
        self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Awaitable[None]]
    ) -> None:
        if scope["type"] in ("http", "websocket") and not allowed(scope):
            if scope["type"] == "http":
                body = b"only devices' requests are answered to other machines\n"
                headers = [(b"content-type", b"text/plain")]
                await send({"type": "http.response.start", "status": 403, "headers": headers})
                await send({"type": "http.response.body", "body": body})
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        await self.app(scope, receive, send)


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

    def with_local_control() -> tuple[Middleware, ...]:
        return (Middleware(LocalControl), *others())

    def quietly(*args: Any, **options: Any) -> None:
        ours = {"access_log": False, "timeout_graceful_shutdown": STOP_S}
        serve(*args, **(options | ours))

    extensions.get_middleware = with_local_control
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
