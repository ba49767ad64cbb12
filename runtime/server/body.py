"""A request's body: read up to a limit, within a time, as JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NoReturn

from penstock.runtime.server.api_error import ApiError

READ_SECONDS = 60.0  # for a whole body
DRAIN_BYTES = 16 << 20  # of a body that is too large; its sender reads no answer before it is sent
DRAIN_SECONDS = 5.0

Headers = Iterable[tuple[bytes, bytes]]  # names in lower case
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientLeft(Exception):
    """The client has closed its connection."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first header of that name."""
    return next((value for key, value in headers if key == name), None)


async def read_json(headers: Headers, receive: Receive, limit_bytes: int) -> object:
    """The body as JSON.

    Raises:
        ApiError: 400 not JSON, 408 too slow, 413 too large, 415 not said to be JSON.
        ClientLeft: before the end.
    """
    kind = (header(headers, b"content-type") or b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise ApiError(
            415,
            f"Content-Type is {kind.decode('latin-1')!r}; send 'Content-Type: application/json'.",
        )
    declared = header(headers, b"content-length")  # the HTTP parser has checked that it is a number
    if declared is not None and int(declared) > limit_bytes:
        await _too_large(receive, limit_bytes)
    try:
        data = await asyncio.wait_for(_read(receive, limit_bytes), READ_SECONDS)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body took longer than {READ_SECONDS:.0f} s to come.") from None
    return parse_json(data)


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    data = bytearray()
    async for part in _parts(receive):
        data += part
        if len(data) > limit_bytes:  # no Content-Length: chunked
            del data
            await _too_large(receive, limit_bytes)
    return bytes(data)


async def _parts(receive: Receive) -> Any:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def _too_large(receive: Receive, limit_bytes: int) -> NoReturn:
    """Let the client send some of the rest, so that it comes to read the answer."""

    async def drain() -> None:
        drained_bytes = 0
        async for part in _parts(receive):
            drained_bytes += len(part)
            if drained_bytes > DRAIN_BYTES:
                return

    try:
        await asyncio.wait_for(drain(), DRAIN_SECONDS)
    except asyncio.TimeoutError:
        pass
    raise ApiError(
        413,
        f"the body is larger than {limit_bytes} bytes, which is what this server takes.",
        code="request_too_large",
        headers={"connection": "close"},
    )


def parse_json(data: bytes) -> object:
    """JSON of the standard: UTF-8, no NaN.

    Raises:
        ApiError: 400.
    """
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply.") from None
    except ValueError as error:  # JSON, UTF-8, or a number of thousands of digits
        raise ApiError(400, f"the body is not valid JSON: {error}.") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
