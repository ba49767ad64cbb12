"""Who may ask SuperLink for what, through Starlette's own test client and by address."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.federated.server.superlink_process import LocalControl, allowed

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
