"""Chat messages to one prompt, by the jinja2 template that a model file carries.

A template is a program from a stranger. It runs in jinja2's immutable sandbox, which keeps it from
Python's internals (`__class__`, `mro`, attributes that start with an underscore) and from changing
its inputs. On top of that, for this is a program that may also never end:

- a `range()` is at most `MAX_RANGE` long, and so is every width or count given to a filter or to a
  method of a string;
- loop rounds, calls and the lengths of ranges add up to at most `MAX_STEPS` in one rendering;
- the prompt, and every repetition with `*`, is at most `MAX_PROMPT_CHARS` long.

Not bounded: memory that a template asks for by doubling a string again and again, or through the
widths of format strings. Who serves templates from strangers should cap the process as well.

Names and filters are those of transformers (`utils/chat_template_utils.py`), so that a template
renders to the same text there and here: `tojson`, `raise_exception`, `strftime_now`, loop controls,
and `{% generation %}`, which marks text for training and means nothing here.
"""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.errors import PenstockError, UsageError

MAX_RANGE = 100_000
MAX_STEPS = 300_000
MAX_PROMPT_CHARS = 16 << 20

DEFAULT_TEMPLATE = """\
{% for message in messages %}
{{ message.role | capitalize }}: {{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
Assistant:{% endif %}"""
"""For models that carry no template: each message on a line of its own after its role.

    System: Be brief.
    User: Who are you?
    Assistant:

A model without a template was most likely never taught control tokens for turns, so plain words
are the safest. Set `stop=("\\nUser:",)` with it.
"""


class ChatTemplateError(PenstockError):
    """A chat template is not valid, refused its input, or tried what it may not do.

    Attributes:
        line: the line in the template, from 1, or None when it is not known.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: jinja2 source, or None for `DEFAULT_TEMPLATE`.
        bos_token: what the template finds as `bos_token`.
        eos_token: what the template finds as `eos_token`.

    Raises:
        ChatTemplateError: the source is not valid jinja2.
    """

    def __init__(self, source: str | None, bos_token: str = "", eos_token: str = "") -> None:
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._environment = _Sandbox()
        with _template_errors():
            text = DEFAULT_TEMPLATE if source is None else source
            self._template = self._environment.from_string(text)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """The prompt for a conversation.

        Encode it with `add_bos=None`: most templates write the BOS token themselves.

        Args:
            messages: mappings with "role" and "content", and what else the template knows, such
                as "tool_calls". Only plain values: str, numbers, bool, None, lists and mappings.
            add_generation_prompt: end with the opening of the assistant's turn.
            **variables: more names for the template, such as `tools` or `enable_thinking`.

        Raises:
            UsageError: messages are not of that shape.
            ChatTemplateError: the template failed, refused the messages or ran into a limit.
        """
        names: dict[str, Any] = {"tools": None, "documents": None, **self._tokens}
        names.update({name: _plain(value, name) for name, value in variables.items()})
        names["messages"] = [_message(message, i) for i, message in enumerate(messages)]
        names["add_generation_prompt"] = bool(add_generation_prompt)
        parts: list[str] = []
        length_chars = 0
        with _template_errors():
            for part in self._template.generate({**names, _STEPS: _Steps()}):
                parts.append(part)
                length_chars += len(part)
                if length_chars > MAX_PROMPT_CHARS:
                    raise SecurityError(f"the prompt is longer than {MAX_PROMPT_CHARS} characters")
        return "".join(parts)


def render_chat(
    source: str | None,
    messages: Sequence[Mapping[str, object]],
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
) -> str:
    """Compile and render once; see `ChatTemplate`, which saves the compiling."""
    return ChatTemplate(source, bos_token, eos_token).render(messages, add_generation_prompt)


# ------------------------------------------------------------------ the sandbox

# No identifier of the template language, so that no template can read it or shadow it.
_STEPS = "0steps"


class _Steps:
    """Counts what one rendering has done so far."""

    def __init__(self) -> None:
        self.used = 0

    def take(self, count: int = 1) -> None:
        self.used += count
        if self.used > MAX_STEPS:
            raise SecurityError(f"more than {MAX_STEPS} loop rounds and calls")

    def loop(self, iterable: Iterable[object]) -> Iterator[object]:
        for item in iterable:
            self.take()
            yield item


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _GenerationBlock],
        )
        self.globals.pop("lipsum")  # makes text without end, and no chat needs it
        self.globals["range"] = _range
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse as always, then send every loop through the step counter."""
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            counter = nodes.Getattr(nodes.Name(_STEPS, "load"), "loop", "load")
            loop.iter = nodes.Call(counter, [loop.iter], [], None, None)
            loop.iter.set_lineno(loop.lineno).set_environment(self)
        return template

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        steps: Any = context.resolve(_STEPS)
        steps.take()
        if isinstance(getattr(function, "__self__", None), str):
            _check_numbers(args, kwargs)
        if isinstance(function, LoopContext):  # the next level of a recursive loop
            args = (steps.loop(args[0]), *args[1:])
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        for value, times in ((left, right), (right, left)):
            if operator == "*" and isinstance(value, (str, list, tuple)):
                if isinstance(times, int) and times * len(value) > MAX_PROMPT_CHARS:
                    raise SecurityError(f"a repetition is longer than {MAX_PROMPT_CHARS}")
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MAX_RANGE:
                raise SecurityError("a power has too many digits")
        return super().call_binop(context, operator, left, right)


class _GenerationBlock(Extension):
    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@jinja2.pass_context
def _range(context: Context, *args: int) -> range:
    result = range(*args)
    if len(result) > MAX_RANGE:
        raise SecurityError(f"a range of {len(result)} is longer than {MAX_RANGE}")
    context.resolve(_STEPS).take(len(result))
    return result


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter, refusing widths and counts without bound."""
    # The value that is filtered may be any number. jinja2 puts its own argument before it.
    own_args = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)  # keeps that mark
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_numbers(args[own_args + 1 :], kwargs)
        return function(*args, **kwargs)

    return checked


def _check_numbers(args: Iterable[object], kwargs: Mapping[str, object]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_RANGE:
            raise SecurityError(f"the number {str(value)[:20]} is larger than {MAX_RANGE}")


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which a model was not trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


# ------------------------------------------------------------------ what goes in, what goes wrong


def _message(message: object, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f'{where} is {message!r:.80}; expected {{"role": ..., "content": ...}}.')
    if "content" not in message and "tool_calls" not in message:
        raise UsageError(f'{where} of role {message["role"]!r} has no "content".')
    plain: dict[str, Any] = _plain(message, where)
    return plain


def _plain(value: object, where: str) -> Any:
    """A copy made of plain types only: methods of richer ones could do harm in the sandbox."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise UsageError(
        f"{where} is a {type(value).__name__}; expected text, numbers, lists and mappings only."
    )


@contextmanager
def _template_errors() -> Iterator[None]:
    """Turn whatever a template raises into a `ChatTemplateError` with the line."""
    try:
        yield
    except Exception as error:
        line = getattr(error, "lineno", None)
        frames = traceback.extract_tb(error.__traceback__, limit=-1000)
        # jinja2 rewrites the frames of compiled templates to the lines of their source.
        lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
        line = lines[-1] if lines else line
        at = "" if line is None else f", line {line}"
        reason = str(error)[:300] or type(error).__name__
        raise ChatTemplateError(
            f"chat template{at}: {reason}. Expected a template that renders these messages; pass "
            "another one, or a plain prompt.",
            line,
        ) from None
