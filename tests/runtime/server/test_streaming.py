"""Streams: what is in the events, whole characters, stop strings, and clients that leave."""

from __future__ import annotations

import contextlib
import http.client
import json
import time

import pytest

from penstock.runtime.embedded import embedded_model
from penstock.runtime.load import load_bundle
from penstock.runtime.server.sse import event
from tests.runtime.server.processes import CHAT, COMPLETIONS, HOST, Client, model_server, text_of

PROMPT = "Once upon a time there was a king who"
GREEDY = {"temperature": 0, "max_tokens": 40}
FOREIGN = 'é ß 中文 🦊👩‍👩‍👧 \u2028 \x85 \x00 \r\n "quoted" \\u0041 end'


def test_the_events_of_a_completion(client: Client) -> None:
    events = client.stream(COMPLETIONS, {"prompt": "say abc"})
    assert len({(e["id"], e["created"], e["model"]) for e in events}) == 1
    assert {e["object"] for e in events} == {"text_completion"}
    assert [e["choices"][0]["text"] for e in events] == ["a", "b", "c", ""]
    assert [e["choices"][0]["finish_reason"] for e in events] == [None, None, None, "stop"]
    assert events[0]["id"].startswith("cmpl-")
    assert "usage" not in events[-1]


def test_the_events_of_a_chat(client: Client) -> None:
    messages = [{"role": "user", "content": "say ab"}]
    events = client.stream(CHAT, {"messages": messages, "stream_options": {"include_usage": True}})
    assert {e["object"] for e in events} == {"chat.completion.chunk"}
    assert [e["choices"][0]["delta"] for e in events[:-1]] == [
        {"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {},
    ]  # fmt: skip
    assert [e["usage"] for e in events[:-1]] == [None] * 4
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def test_a_whole_answer(client: Client) -> None:
    messages = [{"role": "user", "content": "say ab"}]
    whole = client.post(CHAT, {"messages": messages, "max_tokens": 1}).json
    (choice,) = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": "a"}
    assert (whole["object"], choice["finish_reason"]) == ("chat.completion", "length")
    assert abs(whole["created"] - time.time()) < 60
    assert whole["usage"]["total_tokens"] == 3
    assert client.post(CHAT, {"messages": messages}).json["id"] != whole["id"]


def test_pieces_come_as_they_are_made(client: Client) -> None:
    with client.open_stream(COMPLETIONS, {"prompt": "count 200 0.05", "max_tokens": 200}) as events:
        begin = time.monotonic()
        assert next(events)["choices"][0]["text"] == "1 "
        assert next(events)["choices"][0]["text"] == "2 "
        assert time.monotonic() - begin < 5  # of ten seconds


def test_characters_of_many_bytes(client: Client) -> None:
    prompt, tokens = f"say {FOREIGN}", len(FOREIGN)
    events = client.stream(COMPLETIONS, {"prompt": prompt, "max_tokens": tokens})
    assert text_of(events) == FOREIGN
    whole = client.post(COMPLETIONS, {"prompt": prompt, "max_tokens": tokens})
    assert whole.json["choices"][0]["text"] == FOREIGN
    assert "中文 🦊".encode() in whole.body


def test_an_event_is_one_line_to_every_client() -> None:
    data = event({"text": FOREIGN})
    assert len(data.decode().splitlines()) == 2 and data.endswith(b"\n\n")
    assert json.loads(data[6:])["text"] == FOREIGN


def test_a_failure_in_mid_stream_is_an_event(client: Client) -> None:
    with client.open_stream(COMPLETIONS, {"prompt": "fail 2"}) as events:
        received = list(events)
    assert text_of(received[:-1]) == "xx"
    assert received[-1]["error"]["code"] == "StorageError"


def test_a_stream_tells_what_the_python_api_tells(story: Client) -> None:
    model = load_bundle(embedded_model(), dense=True, threads=1)
    expected = "".join(model.generate(PROMPT, temperature=0.0, max_tokens=40))
    assert text_of(story.stream(COMPLETIONS, {"prompt": PROMPT, **GREEDY})) == expected
    whole = story.post(COMPLETIONS, {"prompt": PROMPT, **GREEDY}).json
    assert whole["choices"][0]["text"] == expected
    assert whole["usage"]["prompt_tokens"] == len(model.tokenizer.encode(PROMPT))
    assert whole["usage"]["completion_tokens"] == 40
    messages = [{"role": "user", "content": "Who are you?"}]
    expected = "".join(model.chat(messages, temperature=0.0, max_tokens=40))
    assert text_of(story.stream(CHAT, {"messages": messages, **GREEDY})) == expected


def test_a_seed_repeats_an_answer(story: Client) -> None:
    def text(seed: int) -> str:
        asked = {"prompt": PROMPT, "seed": seed, "max_tokens": 12}
        return str(story.post(COMPLETIONS, asked).json["choices"][0]["text"])

    assert text(5) == text(5) != text(6)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(story: Client, stream: bool) -> None:
    plain = story.post(COMPLETIONS, {"prompt": PROMPT, **GREEDY}).json["choices"][0]["text"]
    stop = plain[20:27]  # spread over tokens, as like as not
    asked = {"prompt": PROMPT, **GREEDY, "stop": ["never there", stop]}
    if stream:
        events = story.stream(COMPLETIONS, asked)
        text, reason = text_of(events), events[-1]["choices"][0]["finish_reason"]
    else:
        (choice,) = story.post(COMPLETIONS, asked).json["choices"]
        text, reason = choice["text"], choice["finish_reason"]
    assert (text, reason) == (plain[: plain.index(stop)], "stop")


def test_the_context_ends_an_answer_as_a_length(story: Client) -> None:
    context = story.get("/v1/models").json["data"][0]["context_length"]
    long = {"prompt": PROMPT, "max_tokens": 10**6, "temperature": 0, "repetition_penalty": 1.3}
    whole = story.post(COMPLETIONS, long).json
    if whole["choices"][0]["finish_reason"] == "length":  # it may have come to an end of its own
        assert whole["usage"]["total_tokens"] in (context, context + 1)
    reply = story.post(COMPLETIONS, {"prompt": f"{PROMPT} " * context})
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert f"the context is {context}" in reply.error["message"]


def test_a_client_that_leaves_stops_its_generation_within_a_token(client: Client) -> None:
    before = client.metrics()
    with client.open_stream(COMPLETIONS, {"prompt": "count 300 0.1", "max_tokens": 300}) as events:
        assert [next(events)["choices"][0]["text"] for _ in range(3)] == ["1 ", "2 ", "3 "]
        assert client.metrics()["in_flight"] == 1
    after = client.wait_for(lambda numbers: numbers["in_flight"] == 0)
    # Three were seen; one may have been under way, and one on its way.
    assert after["generated_tokens_total"] - before["generated_tokens_total"] <= 5
    assert after["aborted_total"] - before["aborted_total"] == 1
    assert client.post(COMPLETIONS, {"prompt": "say hi"}).json["choices"][0]["text"] == "hi"


def test_a_client_that_does_not_stream_and_leaves(client: Client) -> None:
    before = client.metrics()
    link = http.client.HTTPConnection(HOST, client.port, timeout=0.3)
    with contextlib.closing(link), pytest.raises(TimeoutError):
        body = json.dumps({"prompt": "count 300 0.1", "max_tokens": 300})
        link.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
        link.getresponse()
    after = client.wait_for(lambda numbers: numbers["in_flight"] == 0)
    assert after["aborted_total"] - before["aborted_total"] == 1
    assert after["generated_tokens_total"] - before["generated_tokens_total"] < 60


def test_the_real_model_stops_reading_when_its_client_leaves() -> None:
    options = ("--ffn-resident", "25%", "--exact", "--threads", "1")
    with model_server(embedded_model(), *options) as server:
        client = server.client
        asked = {"prompt": PROMPT, "max_tokens": 900, "temperature": 1.0, "seed": 3}
        with client.open_stream(COMPLETIONS, asked) as events:
            for _ in range(5):
                next(events)
        stopped = client.wait_for(lambda numbers: numbers["in_flight"] == 0)
        assert stopped["aborted_total"] == 1
        assert 5 <= stopped["generated_tokens_total"] < 450
        assert stopped["read_bytes_total"] > 0 and 0 < stopped["hit_rate"] < 1
        time.sleep(0.3)
        assert client.metrics()["read_bytes_total"] == stopped["read_bytes_total"]
        again = client.post(COMPLETIONS, {"prompt": PROMPT, **GREEDY}).json
        assert again["usage"]["completion_tokens"] == 40
