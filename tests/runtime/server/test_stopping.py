"""What a signal does to answers that are being made, that wait, and that nobody reads."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.runtime.server.processes import COMPLETIONS, HOST, scripted_server, text_of

ENDLESS = {"prompt": "count 900 0.1", "max_tokens": 900}
STOPS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", STOPS)
def test_an_answer_may_finish_and_those_that_wait_are_sent_away(number: signal.Signals) -> None:
    with scripted_server() as server, ThreadPoolExecutor(1) as pool:
        client = server.client
        with client.open_stream(
            COMPLETIONS, {"prompt": "count 25 0.1", "max_tokens": 25}
        ) as events:
            next(events)
            waiting = pool.submit(client.post, COMPLETIONS, {"prompt": "turn"})
            client.wait_for(lambda numbers: numbers["queue_length"] == 1)
            server.send_signal(number)
            received = list(events)
        assert received[-1] == "[DONE]"
        assert text_of(received[:-1]).endswith(" 25 ")
        assert (waiting.result().status, waiting.result().error["code"]) == (503, "stopping")
        assert server.wait() == 0


def test_a_long_answer_is_ended_after_the_grace() -> None:
    with scripted_server(grace_seconds=1) as server:
        with server.client.open_stream(COMPLETIONS, ENDLESS) as events:
            next(events)
            begin = time.monotonic()
            server.send_signal(signal.SIGTERM)
            received = list(events)
        assert received[-1]["error"]["code"] == "stopping"
        assert 0.9 < time.monotonic() - begin < 30
        assert server.wait() == 0


@pytest.mark.parametrize("number", STOPS)
def test_a_second_signal_does_not_wait(number: signal.Signals) -> None:
    with scripted_server(grace_seconds=30) as server:
        with server.client.open_stream(COMPLETIONS, ENDLESS) as events:
            next(events)
            begin = time.monotonic()
            server.send_signal(number)
            time.sleep(0.2)
            server.send_signal(number)
            assert server.wait() == 0
            assert time.monotonic() - begin < 15  # of the grace's thirty


def test_a_client_that_never_reads_does_not_keep_the_server() -> None:
    with scripted_server(grace_seconds=1) as server:
        body = json.dumps({"prompt": "flood 400 65536", "max_tokens": 900, "stream": True})
        with socket.create_connection((HOST, server.client.port)) as link:
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: {HOST}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            link.sendall(f"{head}{body}".encode())
            server.client.wait_for(lambda numbers: numbers["request_seconds_count"] == 1)
            begin = time.monotonic()
            assert server.stop() == 0
            assert 1.9 < time.monotonic() - begin < 30, "its 26 MB fit into no buffer"
