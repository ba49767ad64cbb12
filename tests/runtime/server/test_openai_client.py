"""The client package that most programs use, against the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from penstock.runtime.embedded import embedded_model
from tests.runtime.server.processes import HOST, ServerProcess, model_server, scripted_server

if TYPE_CHECKING:  # which takes a second or two to import
    import openai
    from openai.types.chat import ChatCompletionMessageParam

KEY = "sk-test"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me of the king."}]


@pytest.fixture(scope="module")
def running() -> Iterator[ServerProcess]:
    with model_server(
        embedded_model(), "--dense", "--threads", "1", PENSTOCK_API_KEY=KEY
    ) as server:
        yield server


def connect(server: ServerProcess, key: str = KEY) -> openai.OpenAI:
    import openai

    url = f"http://{HOST}:{server.client.port}/v1"
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)


@pytest.fixture
def api(running: ServerProcess) -> Iterator[openai.OpenAI]:
    with connect(running) as client:
        yield client


def test_models(api: openai.OpenAI) -> None:
    assert [model.id for model in api.models.list()] == ["storyteller"]
    assert api.models.retrieve("storyteller").owned_by == "penstock"


def test_a_completion_whole_and_streamed(api: openai.OpenAI) -> None:
    whole = api.completions.create(
        model="storyteller", prompt="Once upon a time", max_tokens=16, temperature=0
    )
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.completion_tokens == 16
    stream = api.completions.create(
        model="storyteller", prompt="Once upon a time", max_tokens=16, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_a_chat_whole_and_streamed(api: openai.OpenAI) -> None:
    whole = api.chat.completions.create(
        model="storyteller", messages=MESSAGES, max_completion_tokens=16, temperature=0, seed=1
    )
    assert whole.choices[0].message.role == "assistant"
    stream = api.chat.completions.create(
        model="storyteller", messages=MESSAGES, max_completion_tokens=16, temperature=0,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_fields_of_ours_go_through_extra_body(api: openai.OpenAI) -> None:
    def text(**extra: float) -> str:
        return api.completions.create(
            model="storyteller", prompt="Once upon a time", max_tokens=24, temperature=0,
            extra_body=extra,
        ).choices[0].text  # fmt: skip

    assert text(repetition_penalty=1.0) != text(repetition_penalty=1.8)


def test_errors_are_the_clients_own(running: ServerProcess, api: openai.OpenAI) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="one answer") as caught:
        api.completions.create(model="storyteller", prompt="x", n=2)
    assert caught.value.param == "n"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        api.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.BadRequestError) as too_long:
        api.completions.create(model="storyteller", prompt="king " * 5000)
    assert too_long.value.code == "context_length_exceeded"
    with connect(running, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_failure_in_mid_stream_is_raised_there() -> None:
    import openai

    with scripted_server(api_key=KEY) as server, connect(server) as api:
        stream = api.completions.create(model="scripted", prompt="fail 3", stream=True)
        pieces = []
        with stream, pytest.raises(openai.APIError, match="the disk is on fire"):
            for chunk in stream:
                pieces.append(chunk.choices[0].text)
        assert pieces == ["x", "x", "x"]


def test_leaving_a_stream_stops_it(running: ServerProcess, api: openai.OpenAI) -> None:
    before = running.client.metrics()
    stream = api.completions.create(
        model="storyteller", prompt="Once upon a time", max_tokens=900, seed=2, stream=True
    )
    with stream:
        next(iter(stream))
    after = running.client.wait_for(lambda numbers: numbers["in_flight"] == 0)
    assert after["aborted_total"] - before["aborted_total"] == 1
