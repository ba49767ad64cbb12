"""Connections: uvicorn's, which waits for no head for ever, and says errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from penstock.runtime.server.api_error import ApiError


def connections(most: int, head_seconds: float) -> type[asyncio.Protocol]:
    """The class of one server's connections; it needs uvicorn.

    Args:
        most: connections at once; more are sent away.
        head_seconds: within which a request's head must be whole, whatever comes of it meanwhile.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

    class Connection(H11Protocol):
        """One client."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                self._refuse(
                    ApiError(
                        503,
                        f"{most} connections are open, which is the most; try again later.",
                        code="too_many_connections",
                        headers={"retry-after": "5"},
                    )
                )
            else:
                self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._forget_head()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP."""
            self._refuse(ApiError(400, msg))

        def _watch_head(self) -> None:
            """Start the timer where a head is awaited, stop it where a request is answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget_head()
            elif self._head_timer is None and not self.transport.is_closing():
                self._head_timer = self.loop.call_later(head_seconds, self._head_is_late)

        def _forget_head(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _head_is_late(self) -> None:
            self._head_timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.timeout_keep_alive_handler()

        def _refuse(self, error: ApiError) -> None:
            """Answer without asking the application, and close."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.close()  # in the middle of another answer
                return
            body = json.dumps(error.document()).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
                *error.headers.items(),
            ]
            reason = STATUS_PHRASES[error.status]
            answer = h11.Response(status_code=error.status, headers=headers, reason=reason)
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Connection
