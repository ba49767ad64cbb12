"""Who may ask SuperLink for what, through Starlette's own test client and by address."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.federated.server.pulling import MOST_PARTS
from penstock.federated.server.superlink_process import (
    FLEET,
    MOST_BODY,
    PUSH_MESSAGES,
    BoundedRequests,
    LocalControl,
    allowed,
)

HERE, THERE, SERVER = ("127.0.0.1", 5000), ("203.0.113.9", 5000), ("192.168.1.5", 8000)


@pytest.mark.parametrize(
    ("path", "client", "answered"),
    [
        ("/v1/fleet/pull-messages", THERE, True),
        ("/health", THERE, True),
        ("/v1/control/start-run", THERE, False),
        ("/v1/runtime/push-object", THERE, False),
        ("/docs", THERE, False),
        ("/healthy", THERE, False),
        ("/v1/fleet", THERE, False),
        ("/v1/fleets/x", THERE, False),
        ("/v1/control/start-run", HERE, True),
        ("/v1/control/start-run", ("::1", 1), True),
        ("/v1/control/start-run", ("::ffff:127.0.0.1", 1), True),
        ("/v1/control/start-run", ("::ffff:203.0.113.9", 1), False),
        ("/v1/control/start-run", ("192.168.1.5", 1), True),
        ("/v1/control/start-run", None, False),
    ],
)
def test_only_devices_requests_are_answered_to_others(
    path: str, client: Any, answered: bool
) -> None:
    assert allowed({"path": path, "client": client, "server": SERVER}) is answered


def test_the_middleware_sends_others_away() -> None:
    import asyncio

    reached: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def ask(path: str) -> None:
        scope = {"type": "http", "path": path, "client": THERE, "server": SERVER}
        await LocalControl(app)(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(ask("/v1/control/start-run"))
    assert reached == [] and sent[0]["status"] == 403
    asyncio.run(ask("/v1/fleet/pull-messages"))
    assert reached == ["/v1/fleet/pull-messages"] and len(sent) == 2


def ask_bounded(path: str, headers: dict[str, str], *bodies: bytes) -> tuple[int, list[bytes]]:
    """The status that a device gets, 200 from the app behind, and the bodies that this one read."""
    import asyncio

    read: list[bytes] = []
    sent: list[dict[str, Any]] = []
    coming = [
        {"type": "http.request", "body": body, "more_body": number < len(bodies)}
        for number, body in enumerate(bodies, 1)
    ]

    async def receive() -> dict[str, Any]:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            read.append(message["body"])
        await send({"type": "http.response.start", "status": 200})

    scope = {
        "type": "http",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(BoundedRequests(app)(scope, receive, send))
    return (sent[0]["status"] if sent else 0), read


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (f"{FLEET}push-object", {"content-length": "3"}, 200),
        (f"{FLEET}push-object", {"content-length": str(MOST_BODY)}, 200),
        (f"{FLEET}push-object", {"content-length": str(MOST_BODY + 1)}, 413),
        (f"{FLEET}push-object", {"content-length": "9" * 40}, 413),
        (f"{FLEET}push-object", {"content-length": "-1"}, 411),
        (f"{FLEET}push-object", {}, 411),
        (f"{FLEET}push-object", {"transfer-encoding": "chunked"}, 411),
        (f"{FLEET}push-object", {"transfer-encoding": "chunked", "content-length": "3"}, 411),
        ("/v1/runtime/push-object", {"content-length": str(MOST_BODY + 1)}, 200),
    ],
)
def test_requests_of_devices_are_bounded(path: str, headers: dict[str, str], status: int) -> None:
    """Before a byte of them is read."""
    assert ask_bounded(path, headers, b"abc") == (status, [b"abc"] if status == 200 else [])


def announcing(parts: int) -> bytes:
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.proto.message_pb2 import ObjectTree

    leaves = [ObjectTree(object_id=f"{number:064x}") for number in range(parts - 1)]
    tree = ObjectTree(object_id="f" * 64, children=leaves)
    return bytes(PushMessagesRequest(message_object_trees=[tree]).SerializeToString())


def test_messages_of_devices_are_bounded() -> None:
    pytest.importorskip("flwr")
    for parts, status in ((1, 200), (MOST_PARTS, 200), (MOST_PARTS + 1, 413)):
        body = announcing(parts)
        headers = {"content-length": str(len(body))}
        found, read = ask_bounded(PUSH_MESSAGES, headers, body[:100], body[100:])
        assert found == status
        assert read == ([body] if status == 200 else []), "the app behind gets all of it"
    bad = b"\xff\xff no protobuf"
    assert ask_bounded(PUSH_MESSAGES, {"content-length": str(len(bad))}, bad) == (200, [bad])


def test_a_connection_that_breaks_reaches_nobody() -> None:
    import asyncio

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def never(*_: Any) -> None:
        raise AssertionError("nothing is to be answered")

    scope = {"type": "http", "path": PUSH_MESSAGES, "headers": [(b"content-length", b"9")]}
    asyncio.run(BoundedRequests(never)(scope, receive, never))
