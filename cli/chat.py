"""`penstock chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli import options
from penstock.cli.console import say
from penstock.cli.option_groups import Loading, Sampling, grouped
from penstock.cli.options import examples
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.runtime.language_model import LanguageModel
    from penstock.runtime.sampling import SamplingParams

EXAMPLES = examples(
    "penstock chat model.gguf --memory 2GiB",
    'penstock chat model.gguf --system "Answer in one sentence." --temperature 0.3',
    "printf 'Who are you?\\n' | penstock chat model.gguf --max-tokens 60",
)
HELP = "/reset forgets the conversation, /stats shows reads and times, /quit or Ctrl-D ends."


@grouped
def chat(
    model: options.Model,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model is told first.")
    ] = None,
    *,
    loading: Loading,
    max_tokens: options.MaxTokens = 512,
    sampling: Sampling,
    debug: options.Debug = False,
) -> None:
    """Talk with a model; it remembers the conversation.

    MODEL is a Penstock bundle or any GGUF file. /reset forgets the conversation, /stats shows reads
    and times, /quit or Ctrl-D ends. Ctrl-C stops an answer.
    """
    params = sampling.params(max_tokens)
    loaded = loading.load(model)
    if sys.stdin.isatty():
        say(HELP)
    _converse(loaded, params, [] if system is None else [{"role": "system", "content": system}])


def _converse(
    model: LanguageModel, sampling: SamplingParams, opening: list[dict[str, str]]
) -> None:
    messages = list(opening)
    for line in _lines():
        if line == "/quit":
            return
        if line == "/reset":
            messages = list(opening)
            model.reset()
            say("The conversation is forgotten.")
        elif line == "/stats":
            say(str(model.stats()))
        elif line.startswith("/"):
            say(f"There is no {line.split()[0]}. {HELP}")
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                answer = _answer(model, sampling, messages)
            except PenstockError as error:  # too long, or a failed read: the model still works
                messages.pop()
                say(f"Error: {error}")
            else:
                messages.append({"role": "assistant", "content": answer})


def _answer(model: LanguageModel, sampling: SamplingParams, messages: list[dict[str, str]]) -> str:
    """Stream an answer to stdout; Ctrl-C keeps what there is of it."""
    parts: list[str] = []
    try:
        for piece in model.chat(messages, sampling=sampling):
            parts.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print(flush=True)
    return "".join(parts)


def _lines() -> Iterator[str]:
    """What the person types, until Ctrl-D; Ctrl-C takes back the line."""
    typed = sys.stdin.isatty()
    if typed:
        import readline  # noqa: F401  (input() gains editing and history by it)
    while True:
        try:
            if typed and not sys.stdout.isatty():  # input() would mix its prompt into the answers
                print("> ", end="", file=sys.stderr, flush=True)
            yield input("> " if typed and sys.stdout.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            say()
