"""One request's way through the queue, as its handler on the event loop sees it."""

from __future__ import annotations

import asyncio
from types import TracebackType

from penstock.runtime.server.api_error import ApiError
from penstock.runtime.server.body import ClientLeft, Receive
from penstock.runtime.server.metrics import Metrics
from penstock.runtime.server.schema import Asked
from penstock.runtime.server.worker import Event, Finished, Worker

LEFT_STATUS = 499  # nginx's: the client closed the connection; nobody reads it


class Exchange:
    """Puts a request in the queue, gives its events, and takes it back when its client leaves.

    Args:
        receive: ASGI's, after the body was read: what comes next is that the client has left.
    """

    def __init__(self, worker: Worker, metrics: Metrics, asked: Asked, receive: Receive) -> None:
        self._worker = worker
        self._metrics = metrics
        self._asked = asked
        self._receive = receive
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def __aenter__(self) -> Exchange:
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(self._events.put_nowait, event)
            except RuntimeError:  # the loop has ended, and with it whoever asked
                pass

        self._job = self._worker.submit(self._asked, deliver)
        self._watch = asyncio.create_task(self._watch_client())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.cancel()
        self._leave()  # nothing, where the answer is whole

    async def next(self) -> str | Finished:
        """The next piece, or the end.

        Raises:
            ApiError: the request is refused, or failed.
            ClientLeft: nobody waits for the answer.
        """
        event = await self._events.get()
        if isinstance(event, ApiError):
            if event.status == LEFT_STATUS:
                raise ClientLeft
            raise event
        return event

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if self._worker.cancel(self._job, ApiError(LEFT_STATUS, "the client has left.")):
            self._metrics.aborted()
