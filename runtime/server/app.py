"""The routes, as an ASGI application."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.runtime.server import metrics, sse
from penstock.runtime.server.access import Access
from penstock.runtime.server.answers import Answer
from penstock.runtime.server.api_error import ApiError
from penstock.runtime.server.body import ClientLeft, Receive, read_json
from penstock.runtime.server.exchange import LEFT_STATUS, Exchange
from penstock.runtime.server.metrics import Metrics
from penstock.runtime.server.schema import Asked, parse_chat, parse_completion
from penstock.runtime.server.worker import Worker

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Parse = Callable[[object, str, int], Asked]

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MODELS, MODEL = "/v1/models", "/v1/models/{model}"
HEALTH, METRICS = "/health", "/metrics"


@dataclass(frozen=True)
class Service:
    """What the routes share.

    Attributes:
        name: the model's, to clients.
        created: Unix time.
    """

    name: str
    context_tokens: int
    worker: Worker
    metrics: Metrics
    access: Access
    max_body_bytes: int
    created: int = field(default_factory=lambda: int(time.time()))

    def card(self) -> dict[str, Any]:
        """The model in OpenAI's shape."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "penstock",
            "context_length": self.context_tokens,
        }


class Gate:
    """Around all routes: counts every request, and lets in only those that may.

    Args:
        inner: the routes.
    """

    def __init__(self, service: Service, inner: Starlette) -> None:
        self._service = service
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = LEFT_STATUS

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._service.access.check(scope["path"], scope["headers"])
        except ApiError as error:
            await error_response(error)(scope, receive, noting)
        else:
            await self._inner(scope, receive, noting)
        finally:
            self._service.metrics.answered(_label(scope["path"]), status)


class Generation:
    """The two routes that run the model."""

    def __init__(self, service: Service, parse: Parse) -> None:
        self._service = service
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        try:
            asked = await self._read(scope, receive)
            answer = Answer(service.name, asked.is_chat, asked.include_usage)
            async with Exchange(service.worker, service.metrics, asked, receive) as exchange:
                if asked.stream:
                    await _stream(exchange, answer, send)
                else:
                    await (await _whole(exchange, answer))(scope, receive, send)
        except ClientLeft:
            pass

    async def _read(self, scope: Scope, receive: Receive) -> Asked:
        """A function of its own: what waits in the queue keeps no body and no JSON."""
        service = self._service
        body = await read_json(scope["headers"], receive, service.max_body_bytes)
        return self._parse(body, service.name, service.context_tokens)


async def _whole(exchange: Exchange, answer: Answer) -> Response:
    from starlette.responses import JSONResponse

    parts = []
    while isinstance(event := await exchange.next(), str):
        parts.append(event)
    return JSONResponse(answer.whole("".join(parts), event))


async def _stream(exchange: Exchange, answer: Answer, send: Send) -> None:
    event = await exchange.next()  # with the first piece: a refusal still has a status of its own
    headers = [
        (b"content-type", sse.CONTENT_TYPE.encode()),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx would hold pieces back
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def emit(data: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": more})

    try:
        await emit(b"".join(map(sse.event, answer.opening())))
        while isinstance(event, str):
            await emit(sse.event(answer.piece(event)))
            event = await exchange.next()
        await emit(b"".join(map(sse.event, answer.ending(event))) + sse.DONE, more=False)
    except ApiError as error:
        await emit(sse.event(error.document()), more=False)


def error_response(error: ApiError) -> Response:
    """An error in OpenAI's shape."""
    from starlette.responses import JSONResponse

    return JSONResponse(error.document(), error.status, headers=error.headers)


def make_app(service: Service) -> Gate:
    """The application for a server to run."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [service.card()]})

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        if name != service.name:
            raise ApiError(
                404,
                f"there is no model {name!r}; this server has {service.name!r} only.",
                param="model",
                code="model_not_found",
            )
        return JSONResponse(service.card())

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def numbers(request: Request) -> Response:
        worker = service.worker
        text = service.metrics.text(worker.queue_length, worker.in_flight)
        return PlainTextResponse(text, media_type=metrics.CONTENT_TYPE)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_response(error)

    async def not_routed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = "there is" if error.status_code == 405 else "expected"
        message = (
            f"{request.method} {request.url.path}: {error.detail}; {known} POST {COMPLETIONS} and "
            f"{CHAT}, GET {MODELS}, {HEALTH} and {METRICS}."
        )
        return error_response(ApiError(error.status_code, message, headers=error.headers))

    async def failed(request: Request, error: Exception) -> Response:
        message = f"{type(error).__name__}; this is a fault of Penstock's, see its log."
        return error_response(ApiError(500, message, code="internal_error"))

    app = Starlette(
        routes=[
            Route(COMPLETIONS, Generation(service, parse_completion), methods=["POST"]),
            Route(CHAT, Generation(service, parse_chat), methods=["POST"]),
            Route(MODELS, models),
            Route(MODEL, model),
            Route(HEALTH, health),
            Route(METRICS, numbers),
        ],
        exception_handlers={ApiError: refused, HTTPException: not_routed, Exception: failed},
    )
    app.router.redirect_slashes = False  # a redirected POST loses its body in some clients
    return Gate(service, app)


def _label(path: str) -> str:
    """A path for the metrics: one of ours, so that strangers cannot make up new ones."""
    if path.startswith(f"{MODELS}/"):
        return MODEL
    return path if path in (COMPLETIONS, CHAT, MODELS, HEALTH, METRICS) else "other"
