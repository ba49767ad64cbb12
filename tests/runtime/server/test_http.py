"""Requests that are not as they should be, over real sockets: each has an answer of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

import pytest

from tests.runtime.server.processes import (
    CHAT,
    COMPLETIONS,
    HOST,
    Client,
    raw_exchange,
    scripted_server,
)

MEBIBYTE = 1 << 20


def test_health_and_models(client: Client) -> None:
    assert client.get("/health").json == {"status": "ok"}
    (card,) = client.get("/v1/models").json["data"]
    assert (card["id"], card["object"], card["context_length"]) == ("scripted", "model", 1000)
    assert client.get("/v1/models/scripted").json == card
    missing = client.get("/v1/models/other")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/embeddings", "/v1/completions/", "/health/x"])
def test_unknown_paths(client: Client, path: str) -> None:
    reply = client.post(path, {"prompt": "turn"})
    assert reply.status == 404
    assert "/v1/chat/completions" in reply.error["message"]


@pytest.mark.parametrize(
    "method, path",
    [("GET", COMPLETIONS), ("PUT", CHAT), ("POST", "/health"), ("DELETE", "/metrics")],
)
def test_wrong_methods(client: Client, method: str, path: str) -> None:
    reply = client.request(method, path, None, {})
    assert reply.status == 405
    assert method not in reply.headers["allow"]
    assert method in reply.error["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe\x00", b"null", b"[]", b'"x"', b'{"prompt": NaN}', b"[" * 100_000,
     b'{"a":' * 900 + b"1" + b"}" * 900, b'{"prompt": "\\ud800", "messages": 1}', b"1" * 5000],
)  # fmt: skip
def test_malformed_bodies(client: Client, path: str, body: bytes) -> None:
    reply = client.post(path, body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


def test_wrong_types_name_the_field(client: Client) -> None:
    reply = client.post(COMPLETIONS, {"prompt": "turn", "max_tokens": "many"})
    assert (reply.status, reply.error["param"]) == (400, "max_tokens")
    reply = client.post(CHAT, {"messages": [{"role": "user"}]})
    assert (reply.status, reply.error["param"]) == (400, "messages[0].content")


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt(client: Client, stream: bool) -> None:
    reply = client.post(COMPLETIONS, {"prompt": "long", "stream": stream})
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == ("prompt", "context_length_exceeded")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_said_to_be_json(client: Client, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    reply = client.request("POST", COMPLETIONS, b'{"prompt": "turn"}', headers)
    assert reply.status == 415
    assert "application/json" in reply.error["message"]


def test_a_charset_is_no_other_type(client: Client) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post(COMPLETIONS, {"prompt": "say hi"}, **headers).status == 200


def padded(size: int) -> bytes:
    """A request of exactly so many bytes."""
    document = json.dumps({"prompt": "say hi", "user": ""}).encode()
    return document.replace(b'""', b'"' + b"x" * (size - len(document)) + b'"')


def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_not(client: Client) -> None:
    assert client.post(COMPLETIONS, padded(MEBIBYTE)).status == 200
    reply = client.post(COMPLETIONS, padded(MEBIBYTE + 1))
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert reply.headers["connection"] == "close"
    assert client.post(COMPLETIONS, padded(6 * MEBIBYTE)).status == 413


def chunked(port: int, size: int) -> bytes:
    chunk = b"%x\r\n%s\r\n" % (65536, b"x" * 65536)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    head += "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return raw_exchange(port, head.encode() + chunk * (size // 65536) + b"0\r\n\r\n")


def test_a_body_of_undeclared_size_is_counted(client: Client) -> None:
    assert chunked(client.port, 2 * MEBIBYTE).startswith(b"HTTP/1.1 413 ")
    assert chunked(client.port, MEBIBYTE // 2).startswith(b"HTTP/1.1 400 ")  # read, but no JSON


def test_a_smaller_limit() -> None:
    with scripted_server(max_body_bytes=1000) as server:
        assert server.client.post(COMPLETIONS, padded(1000)).status == 200
        assert server.client.post(COMPLETIONS, padded(1001)).status == 413


@pytest.mark.parametrize(
    "data",
    [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
     b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
     b"GET /health HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_http_harms_nobody(client: Client, data: bytes) -> None:
    with socket.create_connection((HOST, client.port), timeout=60) as link:
        with contextlib.suppress(OSError):  # the server may hang up before all of it is sent
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
            link.recv(65536)
    assert client.get("/health").status == 200


def refusal(answer: bytes) -> tuple[bytes, Any]:
    """The status line, and the error in OpenAI's shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head and b"application/json" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return head.split(b"\r\n")[0], error


def test_what_is_no_http_is_told_so(client: Client) -> None:
    status, error = refusal(raw_exchange(client.port, b"\0\1\2\r\n\r\n"))
    assert status == b"HTTP/1.1 400 Bad Request"
    assert (error["message"], error["type"]) == (
        "Invalid HTTP request received.", "invalid_request_error",
    )  # fmt: skip


def test_a_head_that_comes_too_slowly_is_not_waited_for() -> None:
    with scripted_server(head_seconds=0.5) as server:
        client, head = server.client, b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
        links = [socket.create_connection((HOST, client.port), timeout=60) for _ in range(3)]
        with contextlib.ExitStack() as stack:
            silent, slow, second = [stack.enter_context(link) for link in links]
            second.sendall(head + b"\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += second.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            begin = time.monotonic()
            while time.monotonic() - begin < 30:
                try:
                    slow.sendall(b"G" if time.monotonic() - begin < 0.01 else b"E")
                except OSError:
                    break
                time.sleep(0.1)
            assert time.monotonic() - begin < 10
            assert silent.recv(1) == b""
            second.sendall(head)  # of another request on a connection that had one
            assert second.recv(1) == b""
        begin = time.monotonic()
        reply = client.post(COMPLETIONS, {"prompt": "count 8 0.2", "max_tokens": 9})
        assert reply.status == 200 and time.monotonic() - begin > 1.5, "an answer has all the time"


def test_connections_are_limited() -> None:
    with scripted_server(max_queue=1, spare_connections=2) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                link = socket.create_connection((HOST, server.client.port), timeout=60)
                stack.enter_context(link)
            status, error = refusal(raw_exchange(server.client.port, b""))
            assert (status, error["code"]) == (
                b"HTTP/1.1 503 Service Unavailable", "too_many_connections",
            )  # fmt: skip
        server.client.wait_for(lambda numbers: "in_flight" in numbers)


def test_a_client_that_leaves_in_the_middle_of_its_body(client: Client) -> None:
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    before = client.metrics().get('requests_total{path="/v1/completions",code="499"}', 0)
    with socket.create_connection((HOST, client.port), timeout=60) as link:
        link.sendall(f"{head}Content-Length: 500\r\n\r\n{{".encode())
        time.sleep(0.05)
    name = 'requests_total{path="/v1/completions",code="499"}'
    client.wait_for(lambda numbers: numbers.get(name, 0) == before + 1)


def test_a_slow_client_does_not_hold_the_others(client: Client) -> None:
    with socket.create_connection((HOST, client.port), timeout=60) as link:
        link.sendall(f"POST {COMPLETIONS} HTTP/1.1\r\nContent-Le".encode())
        assert client.post(COMPLETIONS, {"prompt": "say hi"}).json["choices"][0]["text"] == "hi"


def test_a_failed_read_is_500_and_the_next_request_is_answered(client: Client) -> None:
    reply = client.post(COMPLETIONS, {"prompt": "fail 2"})
    assert (reply.status, reply.error["code"]) == (500, "StorageError")
    assert reply.error["type"] == "server_error"
    assert client.post(COMPLETIONS, {"prompt": "say hi"}).status == 200


def test_metrics_count_every_answer(client: Client) -> None:
    reply = client.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    before = client.metrics()
    client.get("/v1/secret/7")
    client.post(COMPLETIONS, {"prompt": "say four", "max_tokens": 3})
    client.post(COMPLETIONS, {"prompt": 7})
    after = client.metrics()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown['requests_total{path="other",code="404"}'] == 1
    assert grown['requests_total{path="/v1/completions",code="200"}'] == 1
    assert grown['requests_total{path="/v1/completions",code="400"}'] == 1
    assert (grown["prompt_tokens_total"], grown["generated_tokens_total"]) == (2, 3)
    assert grown["read_bytes_total"] == 3000
    assert (after["hit_rate"], after["queue_length"], after["in_flight"]) == (0.75, 0, 0)
    assert grown["request_seconds_count"] == grown["generation_seconds_count"] == 1
    assert not any("secret" in name for name in after)
