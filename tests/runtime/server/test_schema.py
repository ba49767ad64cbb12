"""What a request may say, and what it is told when it says something else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.runtime.server.api_error import ApiError
from penstock.runtime.server.body import parse_json
from penstock.runtime.server.schema import Asked, parse_chat, parse_completion

HELLO = [{"role": "user", "content": "hello"}]


def completion(**fields: Any) -> Asked:
    return parse_completion({"prompt": "hello", **fields}, "story", 1000)


def chat(**fields: Any) -> Asked:
    return parse_chat({"messages": HELLO, **fields}, "story", 1000)


def test_defaults_are_openais() -> None:
    asked = completion()
    assert (asked.prompt, asked.is_chat, asked.stream, asked.include_usage) == (
        "hello", False, False, False,
    )  # fmt: skip
    assert asked.sampling.max_tokens == 16
    assert (asked.sampling.temperature, asked.sampling.top_p) == (1.0, 1.0)
    assert chat().sampling.max_tokens == 1000  # what the context holds


def test_every_field_arrives() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2,
        "seed": 7, "stop": ["a", "b"], "max_tokens": 33,
    }  # fmt: skip
    sampling = completion(**fields).sampling
    assert {name: getattr(sampling, name) for name in fields} == {**fields, "stop": ("a", "b")}


def test_null_is_absent_and_unknown_is_ignored() -> None:
    names = ["model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed"]
    names += ["stream", "stream_options", "n", "logprobs", "tools", "presence_penalty", "user"]
    assert completion(**dict.fromkeys(names)) == completion()
    assert completion(user="me", store=True, metadata={"a": [1]}) == completion()


def test_what_asks_for_nothing_is_no_refusal() -> None:
    fields = {"n": 1, "logprobs": False, "echo": False, "tools": [], "tool_choice": "none"}
    fields |= {"presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "best_of": 1}
    assert completion(**fields, response_format={"type": "text"}) == completion()


@pytest.mark.parametrize(
    "prompt, expected", [("hello", "hello"), (["hello"], "hello"), ("", ""), ("é🦊", "é🦊")]
)
def test_prompts(prompt: object, expected: str) -> None:
    assert completion(prompt=prompt).prompt == expected


def test_messages_of_all_roles_and_parts() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    asked = chat(
        messages=[
            {"role": "system", "content": "a"},
            {"role": "developer", "content": "b"},
            {"role": "user", "content": parts, "name": "me"},
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        ]
    )
    assert asked.prompt == (
        {"role": "system", "content": "a"},
        {"role": "system", "content": "b"},
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "c"},
    )


def test_what_waits_knows_the_memory_it_takes() -> None:
    assert 100_000 < completion(prompt="x" * 100_000).nbytes < 101_000
    assert 400_000 < completion(prompt="x" * 99_999 + "🦊").nbytes < 401_000
    assert 100_000 < completion(stop=["x" * 100_000]).nbytes < 101_000
    wide = chat(messages=[{"role": "user", "content": "x" * 100_000}] * 2)
    assert 200_000 < wide.nbytes < 202_000
    many = chat(messages=json.loads(json.dumps(HELLO * 1024)))
    assert 1024 * 100 < many.nbytes < 1024 * 400
    assert len({id(message["role"]) for message in many.prompt}) == 1  # type: ignore[index]


def test_lengths() -> None:
    assert chat(max_tokens=5).sampling.max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=6).sampling.max_tokens == 6
    assert completion(max_tokens=10**30).sampling.max_tokens == 1000  # no more fit


def test_a_negative_seed_is_a_seed() -> None:
    assert completion(seed=-1).sampling.seed == (1 << 64) - 1


@pytest.mark.parametrize(
    "fields, param, words",
    [
        ({"prompt": None}, "prompt", "expected a string"),
        ({"prompt": 7}, "prompt", "expected a string"),
        ({"prompt": []}, "prompt", "list with one string"),
        ({"prompt": ["a", "b"]}, "prompt", "one prompt"),
        ({"prompt": [1, 2, 3]}, "prompt", "token ids"),
        ({"prompt": [[1, 2], [3]]}, "prompt", "token ids"),
        ({"prompt": [None]}, "prompt", "expected a string"),
        ({"prompt": "\ud800"}, "prompt", "surrogate"),
        ({"max_tokens": 0}, "max_tokens", "1 or more"),
        ({"max_tokens": "8"}, "max_tokens", '"8"'),
        ({"max_tokens": 8.0}, "max_tokens", "whole number"),
        ({"max_tokens": True}, "max_tokens", "whole number"),
        ({"temperature": "hot"}, "temperature", "a number"),
        ({"temperature": -1}, "temperature", "0 or more"),
        ({"temperature": 1e999}, "temperature", "finite"),
        ({"temperature": 10**400}, "temperature", "finite"),
        ({"top_p": 2}, "top_p", "at most 1"),
        ({"min_p": -0.1}, "min_p", "from 0 to 1"),
        ({"top_k": -1}, "top_k", "0 or more"),
        ({"repetition_penalty": 0}, "repetition_penalty", "more than 0"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"stop": ""}, "stop", "not empty"),
        ({"stop": ["a", 1]}, "stop", "list of strings"),
        ({"stop": ["a"] * 17}, "stop", "16 at most"),
        ({"stop": "\udfff"}, "stop", "surrogate"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream"),
        ({"stream": True, "stream_options": 1}, "stream_options", "an object"),
        ({"n": 2}, "n", "one answer"),
        ({"n": True}, "n", "one answer"),
        ({"best_of": 3}, "best_of", "one answer"),
        ({"logprobs": 0}, "logprobs", "not given"),
        ({"logprobs": True}, "logprobs", "not given"),
        ({"echo": True}, "echo", "not repeated"),
        ({"suffix": "end"}, "suffix", "continued"),
        ({"presence_penalty": 0.5}, "presence_penalty", "repetition_penalty"),
        ({"frequency_penalty": 1}, "frequency_penalty", "repetition_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format", "text"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "logits"),
        ({"model": 3}, "model", "a string"),
    ],
)
def test_a_completion_is_refused(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        completion(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    "messages, param",
    [
        (None, "messages"),
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 7}], "messages[0].content"),
        ([*HELLO, {"role": "user", "content": ["x"]}], "messages[1].content[0]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].type",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "\ud83d"}], "messages[0].content"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "messages[0]"),
        (HELLO * 1025, "messages"),
    ],
)
def test_a_chat_is_refused(messages: object, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(messages=messages)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_another_model_is_not_found() -> None:
    assert completion(model="story") == completion()
    with pytest.raises(ApiError, match='"gpt-9"; this server has "story" only') as caught:
        completion(model="gpt-9")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize("document", [None, [], "text", 7, True])
def test_a_document_is_an_object(document: object) -> None:
    with pytest.raises(ApiError, match="expected a JSON object"):
        parse_chat(document, "story", 1000)


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(ApiError) as caught:
        completion(max_tokens="9" * 10_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"{'a': 1}", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b"1" * 5000, b'"\xed"'],
)
def test_malformed_json(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_json(data)
    assert caught.value.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(
    "prompt messages model max_tokens temperature top_p top_k min_p seed stop stream "
    "stream_options n tools logprobs response_format repetition_penalty".split()
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, JSON, max_size=5), st.booleans())
def test_whatever_comes_is_accepted_or_refused(document: dict[str, Any], is_chat: bool) -> None:
    parse = parse_chat if is_chat else parse_completion
    filled = {"prompt": "x", "messages": HELLO, **document}
    try:
        parse(filled, "story", 1000)
    except ApiError as error:
        assert error.status in (400, 404)
        json.dumps(error.document())
