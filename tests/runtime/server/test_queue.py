"""Many clients and one model: the order, the limit, and that nobody gets another's answer."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

import penstock
from penstock.runtime.embedded import embedded_model
from tests.runtime.server.processes import COMPLETIONS, HOST, Client, scripted_server, text_of

CLIENTS = 50
ENDLESS = {"prompt": "count 900 0.05", "max_tokens": 900}
WHO = ("king", "witch", "fox", "miller", "princess", "giant", "tailor", "bird", "fisherman", "wolf")
WHAT = ("The {} said to his son", "One day the {} went", "A poor {} had", "In the night the {}",
        "Then the {} cried out")  # fmt: skip
PROMPTS = [what.format(who) for what in WHAT for who in WHO]


def test_fifty_clients_at_once_each_get_their_own_text(story: Client) -> None:
    model = penstock.load(embedded_model(), dense=True, threads=1)
    expected = []
    for prompt in PROMPTS:
        model.reset()
        expected.append("".join(model.generate(prompt, temperature=0.0, max_tokens=12)))
    together = threading.Barrier(CLIENTS)

    def ask(index: int) -> str:
        document = {"prompt": PROMPTS[index], "temperature": 0, "max_tokens": 12}
        together.wait(timeout=60)
        if index % 2:
            return text_of(story.stream(COMPLETIONS, document))
        return str(story.post(COMPLETIONS, document).json["choices"][0]["text"])

    before = story.metrics()
    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(ask, range(CLIENTS))) == expected
    assert len(set(expected)) > 40, "the texts tell the clients apart"
    after = story.metrics()
    assert after["generated_tokens_total"] - before["generated_tokens_total"] <= 12 * CLIENTS
    assert after["request_seconds_count"] - before["request_seconds_count"] == CLIENTS
    assert (after["queue_length"], after["in_flight"]) == (0, 0)


def queued(numbers: dict[str, float], length: int) -> bool:
    return numbers["queue_length"] == length


def test_requests_are_answered_in_the_order_in_which_they_came() -> None:
    with scripted_server() as server, ThreadPoolExecutor(20) as pool:
        client = server.client
        with client.open_stream(COMPLETIONS, ENDLESS) as events:
            next(events)
            waiting = []
            for position in range(1, 11):
                waiting.append(pool.submit(client.post, COMPLETIONS, {"prompt": "turn"}))
                client.wait_for(partial(queued, length=position))
        turns = [reply.result().json["choices"][0]["text"] for reply in waiting]
        assert turns == [str(turn) for turn in range(2, 12)]


def test_beyond_the_queue_clients_are_sent_away_and_asked_back() -> None:
    with scripted_server(max_queue=2) as server, ThreadPoolExecutor(2) as pool:
        client = server.client
        with client.open_stream(COMPLETIONS, ENDLESS) as events:
            next(events)
            waiting = [pool.submit(client.post, COMPLETIONS, {"prompt": "turn"}) for _ in range(2)]
            client.wait_for(partial(queued, length=2))
            for stream in (False, True):
                refused = client.post(COMPLETIONS, {"prompt": "turn", "stream": stream})
                assert (refused.status, refused.error["code"]) == (503, "queue_full")
                assert int(refused.headers["retry-after"]) >= 1
        assert {reply.result().status for reply in waiting} == {200}
        assert client.post(COMPLETIONS, {"prompt": "turn"}).json["choices"][0]["text"] == "4"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what memory a process has")
def test_a_request_that_waits_keeps_only_what_is_needed() -> None:
    body = json.dumps({"prompt": "turn", "user": [[]] * 250_000}).encode()  # 16 MB once parsed
    with scripted_server() as server, ThreadPoolExecutor(20) as pool:
        client = server.client
        with client.open_stream(COMPLETIONS, ENDLESS) as events:
            next(events)
            refused = client.post(COMPLETIONS, body.replace(b"prompt", b"prompts"))
            assert refused.status == 400  # and its memory is free to be used again
            before = server.resident_bytes
            waiting = [pool.submit(client.post, COMPLETIONS, body) for _ in range(12)]
            client.wait_for(partial(queued, length=12))
            assert server.resident_bytes - before < 80 << 20
        assert {reply.result().status for reply in waiting} == {200}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_the_queue_is_not_answered(client: Client, stream: bool) -> None:
    before = client.metrics()
    with ThreadPoolExecutor(1) as pool:
        with client.open_stream(COMPLETIONS, ENDLESS) as events:
            next(events)
            link = http.client.HTTPConnection(HOST, client.port, timeout=60)
            body = json.dumps({"prompt": "count 7", "stream": stream})
            link.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
            client.wait_for(partial(queued, length=1))
            behind = pool.submit(client.post, COMPLETIONS, {"prompt": "say hi"})
            client.wait_for(partial(queued, length=2))
            link.close()
            client.wait_for(partial(queued, length=1))
        assert behind.result().json["choices"][0]["text"] == "hi"
    after = client.wait_for(lambda numbers: numbers["in_flight"] == 0)
    assert after["aborted_total"] - before["aborted_total"] == 2
    assert after["generation_seconds_count"] - before["generation_seconds_count"] == 2


def test_half_of_the_clients_leave_and_the_others_are_answered(client: Client) -> None:
    before = client.metrics()
    together = threading.Barrier(40)

    def ask(index: int) -> str:
        together.wait(timeout=60)
        document = {"prompt": f"say {index:03}", "max_tokens": 16}
        if index % 2:
            return text_of(client.stream(COMPLETIONS, document))
        document = {"prompt": "count 500 0.01", "max_tokens": 500}
        link = http.client.HTTPConnection(HOST, client.port, timeout=60)
        link.request(
            "POST", COMPLETIONS, json.dumps(document), {"Content-Type": "application/json"}
        )
        time.sleep(0.01 * index)
        link.close()
        return f"{index:03}"

    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(ask, range(40))) == [f"{index:03}" for index in range(40)]
    left = 'requests_total{path="/v1/completions",code="499"}'
    client.wait_for(lambda numbers: numbers.get(left, 0) - before.get(left, 0) == 20)
    after = client.wait_for(lambda numbers: numbers["in_flight"] == 0)
    assert after["queue_length"] == 0
