"""From a request's JSON to what the model is asked: every field is checked, or refused, or unknown.

What a client relies on and this server cannot do (several answers, log probabilities, tools...) is
refused with a reason. Unknown fields are ignored, as OpenAI's servers do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.errors import UsageError
from penstock.runtime.language_model import Cancelled, LanguageModel
from penstock.runtime.sampling import SamplingParams
from penstock.runtime.server.api_error import ApiError
from penstock.runtime.server.fields import Fields, check_text, show, wrong

COMPLETION_TOKENS = 16  # OpenAI's default for completions; a chat's is what the context holds
STOPS_MOST = 16
MESSAGES_MOST = 1024
ROLES = ("system", "developer", "user", "assistant")

# Fields that ask for what is not here: the values that ask for nothing, and the reason.
REFUSED: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("n", (1,), "one answer is made for each request"),
    ("best_of", (1,), "one answer is made for each request"),
    ("logprobs", (False,), "log probabilities are not given"),
    ("top_logprobs", (0,), "log probabilities are not given"),
    ("echo", (False,), "the prompt is not repeated; put it before the answer yourself"),
    ("suffix", ("",), "text is continued, not filled in"),
    ("logit_bias", ({},), "logits cannot be shifted"),
    ("presence_penalty", (0,), "use repetition_penalty"),
    ("frequency_penalty", (0,), "use repetition_penalty"),
    ("response_format", ({"type": "text"},), 'only {"type": "text"} is supported'),
    ("tools", ([],), "tools are not supported"),
    ("functions", ([],), "functions are not supported"),
    ("tool_choice", ("none", "auto"), "tools are not supported"),
    ("modalities", (["text"],), "answers are text"),
    ("audio", (), "answers are text"),
)


@dataclass(frozen=True)
class Asked:
    """What a client asks of the model, checked.

    Attributes:
        prompt: the text to continue, or the conversation to answer.
        stream: whether pieces are sent as they are made.
        include_usage: whether a stream ends with the token counts.
    """

    prompt: str | tuple[dict[str, str], ...]
    sampling: SamplingParams
    stream: bool
    include_usage: bool

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)

    @property
    def nbytes(self) -> int:
        """Memory that its texts take while it waits."""
        parts: list[object] = [self.prompt, *self.sampling.stop]
        if not isinstance(self.prompt, str):
            parts += self.prompt
            parts += [message["content"] for message in self.prompt]
        return sum(map(sys.getsizeof, parts))

    def begin(self, model: LanguageModel, cancelled: Cancelled) -> Iterator[str]:
        """Start the generation."""
        if isinstance(self.prompt, str):
            return model.generate(self.prompt, sampling=self.sampling, cancelled=cancelled)
        return model.chat(self.prompt, sampling=self.sampling, cancelled=cancelled)


def parse_completion(document: object, model: str, context_tokens: int) -> Asked:
    """The JSON of /v1/completions.

    Raises:
        ApiError: 400, or 404 when it is for another model.
    """
    fields = _checked(document, model)
    prompt = _prompt(fields.get("prompt"))
    tokens = fields.whole("max_tokens", least=1)
    return _asked(fields, prompt, tokens or COMPLETION_TOKENS, context_tokens)


def parse_chat(document: object, model: str, context_tokens: int) -> Asked:
    """The JSON of /v1/chat/completions.

    Raises:
        ApiError: 400, or 404 when it is for another model.
    """
    fields = _checked(document, model)
    messages = _messages(fields.get("messages"))
    tokens = fields.whole("max_completion_tokens", least=1)
    older_name = fields.whole("max_tokens", least=1)
    return _asked(fields, messages, tokens or older_name or context_tokens, context_tokens)


def _checked(document: object, model: str) -> Fields:
    if not isinstance(document, Mapping):
        raise ApiError(400, f"the body is {show(document)}; expected a JSON object.")
    fields = Fields(document)
    name = fields.get("model")
    if name is not None and check_text("model", name) != model:
        raise ApiError(
            404,
            f"model is {show(name)}; this server has {show(model)} only.",
            param="model",
            code="model_not_found",
        )
    for field, accepted, reason in REFUSED:
        fields.refuse(field, accepted, reason)
    return fields


def _asked(
    fields: Fields, prompt: str | tuple[dict[str, str], ...], tokens: int, context_tokens: int
) -> Asked:
    stream = fields.flag("stream")
    seed = fields.whole("seed")
    values: dict[str, Any] = {
        "temperature": fields.number("temperature", 1.0),
        "top_k": fields.whole("top_k", least=0) or 0,
        "top_p": fields.number("top_p", 1.0),
        "min_p": fields.number("min_p", 0.0),
        "repetition_penalty": fields.number("repetition_penalty", 1.0),
    }
    stop = _stop(fields.get("stop"))
    try:
        sampling = SamplingParams(
            max_tokens=min(tokens, context_tokens),
            seed=None if seed is None else seed % (1 << 64),  # OpenAI's may be negative
            stop=stop,
            **values,
        )
    except UsageError as error:
        at_fault = next((name for name in values if str(error).startswith(name)), None)
        raise ApiError(400, str(error), param=at_fault) from None
    return Asked(prompt, sampling, stream, _include_usage(fields, stream))


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, Mapping):
        raise wrong("stream_options", options, 'an object such as {"include_usage": true}')
    if not stream:
        raise ApiError(400, "stream_options is for streams; set stream.", param="stream_options")
    return Fields(options).flag("include_usage")


def _prompt(value: object) -> str:
    expected = "a string, or a list with one string"
    if isinstance(value, list):
        if value and all(isinstance(item, (int, list)) for item in value):
            raise ApiError(
                400, f"prompt is {show(value)}, token ids; expected text.", param="prompt"
            )
        if len(value) != 1:
            raise wrong("prompt", value, f"{expected}: one prompt is answered for each request")
        value = value[0]
    return check_text("prompt", value, expected)


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = value if isinstance(value, list) else [value]
    if len(stops) > STOPS_MOST:
        raise ApiError(
            400, f"stop has {len(stops)} strings; expected {STOPS_MOST} at most.", param="stop"
        )
    for stop in stops:
        if not check_text("stop", stop, "a string, or a list of strings"):
            raise wrong("stop", value, "strings that are not empty")
    return tuple(stops)


def _messages(value: object) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise wrong("messages", value, "a list of messages, at least one")
    if len(value) > MESSAGES_MOST:
        raise ApiError(
            400,
            f"messages has {len(value)} messages; expected {MESSAGES_MOST} at most.",
            param="messages",
        )
    return tuple(_message(f"messages[{i}]", message) for i, message in enumerate(value))


def _message(where: str, message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise wrong(where, message, 'an object such as {"role": "user", "content": "..."}')
    given = message.get("role")
    role = next((role for role in ROLES if role == given), None)  # ours: one string for all
    if role is None:
        raise wrong(f"{where}.role", given, f"one of {', '.join(ROLES)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise ApiError(400, f"{where} holds a tool call; tools are not supported.", param=where)
    # A developer's message is what newer clients call a system's; templates know the older name.
    return {
        "role": "system" if role == "developer" else role,
        "content": _content(f"{where}.content", message.get("content")),
    }


def _content(where: str, content: object) -> str:
    expected = 'a string, or a list of parts such as {"type": "text", "text": "..."}'
    if not isinstance(content, list):
        return check_text(where, content, expected)
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise wrong(f"{where}[{i}]", part, '{"type": "text", "text": "..."}')
        if part.get("type") != "text":
            raise wrong(f"{where}[{i}].type", part.get("type"), '"text"; the model reads text only')
        texts.append(check_text(f"{where}[{i}].text", part.get("text")))
    return "".join(texts)
