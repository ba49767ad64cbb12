"""An ordinary GGUF file that is streamed, served: what clients get is what the model gives."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import penstock
from benchmarks.gguf_shapes import SHAPES
from benchmarks.synthetic_gguf import write_gguf
from penstock.loaders.probe import device_of, save_profile
from penstock.runtime.gguf.model import GgufModel
from penstock.runtime.gguf.plan import GgufPlan
from tests.bundle_builder import profile
from tests.runtime.server.processes import (
    CHAT,
    COMPLETIONS,
    HOST,
    Client,
    Reply,
    model_server,
    text_of,
)

if TYPE_CHECKING:  # which takes a second or two to import
    import openai
    from openai.types.chat import ChatCompletionMessageParam

CONTEXT, TOKENS = 512, 12
PROMPTS = ("The thing in the water", "Once upon a time", "")
QUESTION = "What is in there?"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
GREEDY: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0}
SHAPES_SERVED = {
    "stream": replace(
        SHAPES["tiny-llama"], name="served-dense", layers=4, width=768, neurons=3072, heads=12
    ),
    "experts": replace(
        SHAPES["tiny-olmoe"].typed("Q4_0"), name="served-mixture", layers=3, width=512,
        neurons=512, heads=8, kv_heads=8, experts=32,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Served:
    """A server, and what the same model under the same budget says in this process.

    Attributes:
        said: the text of each prompt; answered: to MESSAGES.
    """

    mode: str
    name: str
    client: Client
    said: dict[str, str]
    answered: str

    def ask(self, prompt: str) -> Reply:
        return self.client.post(COMPLETIONS, {"prompt": prompt, **GREEDY})


@pytest.fixture(scope="module", params=SHAPES_SERVED)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = tmp_path_factory.mktemp("served")
    path, cache = folder / f"{request.param}.gguf", str(folder / "cache")
    write_gguf(SHAPES_SERVED[request.param], path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache)
        save_profile(replace(profile(), device=device_of(path)))
        budget = _budget(path, request.param)
        model = penstock.load(path, memory=budget, context=CONTEXT, threads=1)
        assert isinstance(model, GgufModel)
        said = {p: "".join(model.generate(p, **GREEDY)) for p in PROMPTS}
        answered = "".join(model.chat([{"role": "user", "content": QUESTION}], **GREEDY))
        model.close()
    options = ("--memory", str(budget), "--context", str(CONTEXT), "--threads", "1")
    with model_server(path, *options, XDG_CACHE_HOME=cache) as server:
        yield Served(request.param, path.stem, server.client, said, answered)


def _budget(path: Path, mode: str) -> int:
    """The least that works and an eighth of the file: most of it stays on storage."""
    least = penstock.plan(path, memory="2GiB", context=CONTEXT, threads=1).least
    budget = least + path.stat().st_size // 8
    plan = penstock.plan(path, memory=budget, context=CONTEXT, threads=1)
    assert isinstance(plan, GgufPlan)
    if plan.mode == "mapped":
        pytest.skip(plan.note)
    assert plan.mode == mode
    return budget


@pytest.fixture
def api(served: Served) -> Iterator[openai.OpenAI]:
    import openai

    url = f"http://{HOST}:{served.client.port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_completions_are_what_the_model_gives(served: Served) -> None:
    assert len({*served.said.values()}) == len(PROMPTS)
    for prompt, wanted in served.said.items():
        whole = served.ask(prompt).json
        assert whole["choices"][0]["text"] == wanted
        assert whole["usage"]["completion_tokens"] > 0
        assert text_of(served.client.stream(COMPLETIONS, {"prompt": prompt, **GREEDY})) == wanted


def test_a_chat_whole_and_streamed(served: Served) -> None:
    asked = {"messages": MESSAGES, **GREEDY}
    whole = served.client.post(CHAT, asked).json
    assert whole["choices"][0]["message"]["content"] == served.answered
    assert text_of(served.client.stream(CHAT, asked)) == served.answered


def test_the_openai_client(served: Served, api: openai.OpenAI) -> None:
    assert [model.id for model in api.models.list()] == [served.name]
    prompt = PROMPTS[0]
    whole = api.completions.create(
        model=served.name, prompt=prompt, max_tokens=TOKENS, temperature=0
    )
    assert whole.choices[0].text == served.said[prompt]
    stream = api.chat.completions.create(
        model=served.name,
        messages=MESSAGES,
        max_completion_tokens=TOKENS,
        temperature=0,
        stream=True,
    )
    text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert text == served.answered


def test_a_client_that_leaves_does_not_spoil_the_next_answer(served: Served) -> None:
    before = served.client.metrics()
    asked = {"prompt": PROMPTS[1], "max_tokens": 400, "temperature": 1.5, "seed": 1}
    with served.client.open_stream(COMPLETIONS, asked) as events:
        for _ in range(3):
            next(events)
    assert served.ask(PROMPTS[1]).json["choices"][0]["text"] == served.said[PROMPTS[1]]
    after = served.client.wait_for(lambda numbers: numbers["in_flight"] == 0)
    assert after["aborted_total"] - before["aborted_total"] == 1


def test_several_clients_at_once(served: Served) -> None:
    asked = [*PROMPTS, *PROMPTS]
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(served.ask, asked))
    assert [reply.status for reply in replies] == [200] * len(asked)
    assert [r.json["choices"][0]["text"] for r in replies] == [served.said[p] for p in asked]


def test_what_was_read_is_in_the_metrics(served: Served) -> None:
    before = served.client.metrics()
    assert served.ask(PROMPTS[0]).status == 200
    after = served.client.wait_for(
        lambda numbers: numbers["read_bytes_total"] > before["read_bytes_total"]
    )
    assert 0 < after["hit_rate"] <= 1
    assert served.mode == "stream" or after["hit_rate"] < 1
    assert after["generated_tokens_total"] > before["generated_tokens_total"]
